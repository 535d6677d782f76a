"""Runs one image tool on a region of an image: reads the region, minds the time, checks what comes back."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, clamped, crop_window
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.errors import UserError
from zoomearth_jax.tools.image_tool import Context, ImageTool, ToolFailure, ToolResult, checked
from zoomearth_jax.tools.user_code import said

MOST_HANGING = 4  # calls of one tool that were given up and still run; no more are made then
SURROUNDINGS = 512  # px: the region of a tool that needs surroundings has at least such sides


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A part of an image as a tool is handed it.

    Attributes:
        pixels: uint8 [h, w, 3].
        window: where it lies, in px of the original; whole px.
        scale: px of the region per px of the original, 1 unless the window is larger than a tool may be handed.
        box: the box that was named, in px of the region.
    """

    pixels: np.ndarray
    window: Box
    scale: float
    box: tuple[float, float, float, float]


def window_of(tool: ImageTool, box: Box, least: int = SURROUNDINGS) -> Box:
    """The window (whole px of the original) that a tool is handed for a box in px of the original.

    Args:
        least: px of its sides where the tool needs surroundings.
    """
    return crop_window(box, least if tool.around else 1)


def read_region(image: ImageSource, window: Box, box: Box, max_side: int) -> Region:
    """Reads a window at full resolution, or shrunk where a side is longer than `max_side` px.

    Args:
        window, box: in px of the original.

    Raises:
        UserError: the image can't be read.
    """
    width, height = round(window.x2 - window.x1), round(window.y2 - window.y1)
    scale = min(1.0, max_side / max(width, height))
    size = Frame(max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = np.ascontiguousarray(image.window(window, size))
    x, y = size.width / width, size.height / height
    inner = clamped(box) or window
    corners = (
        (inner.x1 - window.x1) * x,
        (inner.y1 - window.y1) * y,
        (inner.x2 - window.x1) * x,
        (inner.y2 - window.y1) * y,
    )
    return Region(pixels, window, scale, corners)


def run_tool(
    tool: ImageTool,
    region: Region,
    timeout_s: float,
    label: str = "",
    parameters: Mapping[str, Any] | None = None,
    mask: np.ndarray | None = None,
    others: Sequence[np.ndarray] = (),
) -> ToolResult:
    """Calls a tool; see `Context` for the arguments.

    Raises:
        ToolFailure: it raised, took longer than `timeout_s` seconds, or gave what no tool may give.
    """
    context = Context(region.box, region.window.frame, label, dict(parameters or {}), region.scale, mask, tuple(others))
    pixels = region.pixels.copy()  # what a tool does to it stays its own
    try:
        result = _in_time(tool.name, lambda: tool.call(pixels, context), timeout_s)
        return checked(tool.name, result, region.pixels)
    except ToolFailure as failure:
        reason = str(failure)
        raise ToolFailure(reason if reason.startswith("tool ") else f"tool {tool.name}: {reason}") from None


_HANGING: dict[str, list[threading.Thread]] = {}


def _in_time(name: str, work: Callable[[], Any], timeout_s: float) -> Any:
    """What the work gives. It runs in a thread of its own: one that takes too long is left alone and ends with the process."""
    hanging = [thread for thread in _HANGING.get(name, ()) if thread.is_alive()]
    if len(hanging) >= MOST_HANGING:
        raise ToolFailure(f"tool {name}: {len(hanging)} calls of it still hang; it is not called again")
    box: list[Any] = []

    def run() -> None:
        try:
            box.append((work(), None))
        except BaseException as error:  # whatever a tool raises, SystemExit too
            box.append((None, error))

    thread = threading.Thread(target=run, daemon=True, name=f"tool {name}")
    began = time.monotonic()
    thread.start()
    thread.join(timeout_s)
    if not box:
        _HANGING[name] = [*hanging, thread]
        raise ToolFailure(f"tool {name}: gave nothing in {time.monotonic() - began:.3g} s and was given up")
    result, error = box[0]
    if isinstance(error, UserError):
        raise ToolFailure(str(error))
    if error is not None:
        raise ToolFailure(f"tool {name}: failed ({said(error):.200})")
    return result
