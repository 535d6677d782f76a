"""What an image tool is: it takes a region of the image, and gives a picture, a mask, boxes or a text for it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.errors import UserError

MAX_PIXELS = 16_777_216  # of a tool's picture
MAX_TEXT = 2_000  # letters
MAX_BOXES = 1_000
Corners = tuple[float, float, float, float]


class ToolFailure(UserError):
    """A tool failed, or gave what no tool may give: an outcome that a policy is told, and bad input on the command line."""


class Context(NamedTuple):
    """What a tool knows beside the pixels.

    Attributes:
        box: the box (x1, y1, x2, y2) that was named, in px of the region.
        full: size of the original in px.
        label: what the policy calls the place; empty where nothing was said.
        parameters: by the tool's schema.
        scale: px of the region per px of the original, 1 where it was read at full resolution.
        mask: bool [h, w], px that the user marked; None where nobody did.
        others: the same region at other dates, uint8 [h, w, 3] each.
    """

    box: Corners
    full: Frame
    label: str = ""
    parameters: Mapping[str, Any] = {}
    scale: float = 1.0
    mask: np.ndarray | None = None
    others: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class ToolResult:
    """What a tool gives: at least one of picture, mask, boxes and text.

    Attributes:
        image: uint8 [h, w, 3], any size; only one of the region's own size can be pasted back.
        mask: bool [h, w] over the region.
        boxes: (x1, y1, x2, y2) in px of the region.
        text: what the policy and the user are told.
        metadata: what JSON can hold.
        made_up: bool [h, w] over the region, px that show nothing that the image has; None where there are none.
    """

    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    boxes: tuple[Corners, ...] = ()
    text: str = ""
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    made_up: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ImageTool:
    """An image tool, as the registry has it.

    Attributes:
        name: by which it is called.
        description: what it does, in the words that a policy reads.
        call: the region, uint8 [h, w, 3], and the context -> the result. It may raise anything; it is called from threads.
        parameters: JSON schema of each parameter, by name; None where it takes whatever it is given.
        frame: what a policy writes its box in: px of the `overview`, px of the `original`, or `thousandths` of the image's width
            and height.
        around: whether the region is the box with its surroundings, as the zoom shows them; else it is the box itself.
        versions: packages whose versions its results depend on.
    """

    name: str
    description: str
    call: Callable[[np.ndarray, Context], ToolResult]
    parameters: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    frame: Literal["overview", "original", "thousandths"] = "overview"
    around: bool = True
    versions: tuple[str, ...] = ()


def checked(tool: str, result: Any, region: np.ndarray) -> ToolResult:
    """The result of a tool, where it is one.

    Raises:
        ToolFailure: another type, or arrays of wrong types and shapes.
    """
    if not isinstance(result, ToolResult):
        raise ToolFailure(f"tool {tool}: gave a {type(result).__name__}, not a ToolResult")
    image, size = result.image, region.shape[:2]
    if image is not None:
        _check(tool, "image", image, np.uint8, len(np.shape(image)) == 3 and np.shape(image)[2] == 3, "[h, w, 3]")
        if not 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS:
            raise ToolFailure(f"tool {tool}: gave an image of {image.shape[1]} x {image.shape[0]} px")
    for name, mask in (("mask", result.mask), ("made_up", result.made_up)):
        if mask is not None:
            _check(tool, name, mask, np.bool_, np.shape(mask) == size, f"{list(size)}, the region's size")
    if not isinstance(result.boxes, tuple) or len(result.boxes) > MAX_BOXES:
        raise ToolFailure(f"tool {tool}: boxes must be a tuple of at most {MAX_BOXES}")
    for box in result.boxes:
        if not _is_box(box):
            raise ToolFailure(f"tool {tool}: gave a box {box!r:.80}, not four finite numbers x1 < x2, y1 < y2")
    if not isinstance(result.text, str) or not _is_json(result.metadata):
        raise ToolFailure(f"tool {tool}: its text must be a str, and its metadata a dict that JSON can hold")
    if image is None and result.mask is None and not result.boxes and not result.text:
        raise ToolFailure(f"tool {tool}: gave neither an image, a mask, boxes nor a text")
    return dataclasses.replace(result, text=readable(result.text[:MAX_TEXT]))


def readable(text: str) -> str:
    """The text without what UTF-8 can't hold."""
    return text.encode("utf-8", "replace").decode()


def _is_json(metadata: Any) -> bool:
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(metadata, dict)


def _check(tool: str, name: str, array: Any, dtype, shaped: bool, shape: str) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or not shaped:
        given = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ToolFailure(f"tool {tool}: gave an {name} of {given}; it must be {np.dtype(dtype).name} {shape}")


def _is_box(box: Any) -> bool:
    try:
        x1, y1, x2, y2 = map(float, box)
    except (TypeError, ValueError, OverflowError):
        return False
    return all(map(math.isfinite, (x1, y1, x2, y2))) and x1 < x2 and y1 < y2
