"""An image tool behind an address: the region goes there as PNG in JSON, the result comes back the same way.

What is posted: {"tool", "image": base64 of a PNG, "box": [x1, y1, x2, y2] in px of it, "full": [width, height] of the original,
"label", "parameters"}. What comes back, any of: {"image": base64 of a PNG, "mask": base64 of a grey PNG,
"boxes": [[x1, y1, x2, y2], ...] in px of the region, "text", "metadata"}.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from zoomearth_jax.errors import UserError
from zoomearth_jax.tools.image_tool import MAX_PIXELS, Context, ImageTool, ToolFailure, ToolResult

MAX_BYTES = 2**26  # of a response
_PART = 2**16


def from_address(address: str, timeout_s: float) -> ImageTool:
    """A tool of an address; the last part of its path is its name.

    Raises:
        UserError: not an address of http or https with a host.
    """
    parts = urlsplit(address)
    name = parts.path.rstrip("/").rpartition("/")[2] or (parts.hostname or "")
    return ImageTool(name, f"The tool {name} at {parts.hostname}.", HttpCall(name, address, timeout_s), None)


class HttpCall:
    """Calls an address with a region and its context."""

    def __init__(self, name: str, address: str, timeout_s: float):
        """Takes the seconds that the whole exchange may take.

        Raises:
            UserError: not an address of http or https with a host.
        """
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"tool {name}: {address!r} is no address; give http://HOST/PATH or https://HOST/PATH")
        self._name, self._address, self._timeout_s = name, address, timeout_s
        self._opener = urllib.request.OpenerDirector()  # no files, no other protocols, no redirects
        for handler in (
            urllib.request.ProxyHandler,
            urllib.request.HTTPHandler,
            urllib.request.HTTPSHandler,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.HTTPErrorProcessor,
        ):
            self._opener.add_handler(handler())

    def __call__(self, region: np.ndarray, context: Context) -> ToolResult:
        """What the address makes of the region.

        Raises:
            ToolFailure: it can't be reached, takes too long, or answers with something else.
        """
        body = {
            "tool": self._name,
            "image": _png(region),
            "box": list(context.box),
            "full": [context.full.width, context.full.height],
            "label": context.label,
            "parameters": dict(context.parameters),
        }
        answer = self._exchange(json.dumps(body).encode())
        try:
            given = json.loads(answer)
        except (ValueError, RecursionError):
            raise ToolFailure(f"tool {self._name}: {self._address} answered with something that is no JSON") from None
        if not isinstance(given, dict):
            raise ToolFailure(f"tool {self._name}: {self._address} answered with no JSON object")
        return self._result(given)

    def _exchange(self, body: bytes) -> bytes:
        until = time.monotonic() + self._timeout_s
        request = urllib.request.Request(self._address, body, {"Content-Type": "application/json"}, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                answer = bytearray()
                while part := response.read1(_PART):
                    answer += part
                    if len(answer) > MAX_BYTES:
                        raise ToolFailure(
                            f"tool {self._name}: {self._address} answered with more than {MAX_BYTES:,} bytes"
                        )
                    if time.monotonic() > until:
                        raise TimeoutError
                return bytes(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise ToolFailure(f"tool {self._name}: {self._address} answered with status {error.code}") from None
        except TimeoutError:
            raise ToolFailure(f"tool {self._name}: {self._address} took longer than {self._timeout_s:g} s") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ToolFailure(f"tool {self._name}: {self._address} can't be reached ({reason})") from None

    def _result(self, given: dict[str, Any]) -> ToolResult:
        image, mask = (self._picture(given.get(name), mode) for name, mode in (("image", "RGB"), ("mask", "L")))
        boxes, text, metadata = (given.get("boxes") or [], given.get("text") or "", given.get("metadata") or {})
        if not isinstance(boxes, list) or not all(isinstance(box, list) for box in boxes):
            raise ToolFailure(f"tool {self._name}: boxes must be lists of four numbers")
        return ToolResult(image, None if mask is None else mask > 127, tuple(map(tuple, boxes)), text, metadata)

    def _picture(self, text: Any, mode: str) -> np.ndarray | None:
        """A picture of an answer; its size is looked at before it is decoded."""
        if text is None:
            return None
        try:
            with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG", "JPEG"]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ToolFailure(f"tool {self._name}: answered with {image.width} x {image.height} px")
                return np.array(image.convert(mode))
        except ToolFailure:
            raise
        except Exception as error:  # of many kinds, whatever the bytes are
            raise ToolFailure(f"tool {self._name}: answered with no PNG or JPEG ({type(error).__name__})") from None


def _png(region: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(region).save(file, format="PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
