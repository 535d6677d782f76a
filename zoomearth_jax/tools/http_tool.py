"""An image tool behind an address: the region goes there as PNG in JSON, the result comes back the same way.

What is posted: {"tool", "image": base64 of a PNG, "box": [x1, y1, x2, y2] in px of it, "full": [width, height] of the original,
"label", "parameters"}. What comes back, any of: {"image": base64 of a PNG, "mask": base64 of a grey PNG,
"boxes": [[x1, y1, x2, y2], ...] in px of the region, "text", "metadata"}.
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from zoomearth_jax.errors import UserError
from zoomearth_jax.tools.http_post import Address, HttpFailure
from zoomearth_jax.tools.image_tool import MAX_PIXELS, Context, ImageTool, ToolFailure, ToolResult

MAX_BYTES = 2**26  # of a response


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
        try:
            self._address = Address(address, proxies=True)
        except ValueError as error:
            raise UserError(f"tool {name}: {error}") from None
        self._name, self._said, self._timeout_s = name, f"tool {name}: {address}", timeout_s

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
        try:
            given = json.loads(self._address.post(json.dumps(body).encode(), self._timeout_s, MAX_BYTES))
        except HttpFailure as failure:
            raise ToolFailure(f"tool {self._name}: {failure}") from None
        except (ValueError, RecursionError):
            raise ToolFailure(f"{self._said} answered with something that is no JSON") from None
        if not isinstance(given, dict):
            raise ToolFailure(f"{self._said} answered with no JSON object")
        return self._result(given)

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
