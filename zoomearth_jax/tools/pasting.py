"""Pictures of results, results put back into the image, and where they come from."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import zoomearth_jax
from zoomearth_jax.data_pipeline.images.sources import KEPT_PIXELS, ImageSource, whole
from zoomearth_jax.errors import UserError
from zoomearth_jax.tools.image_tool import ImageTool, ToolFailure, ToolResult
from zoomearth_jax.tools.running import Region
from zoomearth_jax.tools.tool import Outcome

_TINT = np.array([255, 0, 255], np.float32)


def picture_of(result: ToolResult, region: np.ndarray) -> np.ndarray | None:
    """What somebody is shown of a result, uint8 [h, w, 3]: its picture; else the region with the mask tinted and the boxes drawn;
    None where it is a text only."""
    if result.image is not None:
        return result.image
    if result.mask is None and not result.boxes:
        return None
    shown = region.copy()
    if result.mask is not None:
        shown[result.mask] = (0.5 * region[result.mask] + 0.5 * _TINT).astype(np.uint8)
    picture = Image.fromarray(shown)
    draw = ImageDraw.Draw(picture)
    limits = np.array([picture.width, picture.height] * 2) - 1
    for box in result.boxes:
        x1, y1, x2, y2 = np.clip(np.subtract(box, (0, 0, 1, 1)), 0, limits)
        draw.rectangle((x1, y1, max(x2, x1), max(y2, y1)), outline=(255, 255, 0), width=2)
    return np.asarray(picture)


def pasted(original: np.ndarray, region: Region, result: ToolResult, feather: int) -> np.ndarray:
    """The original with the result in place of what the box holds. Beyond the box it fades out over `feather` px; where the region
    ends sooner, and not at the original's own edge, within the box.

    Args:
        original: uint8 [H, W, 3], all of the image.

    Raises:
        ToolFailure: there is no picture, or not one of the region's size at full resolution.
    """
    x1, y1, x2, y2 = (round(c) for c in region.window.corners)
    if result.image is None:
        raise ToolFailure("nothing to paste: the result has no picture")
    if result.image.shape != (y2 - y1, x2 - x1, 3):
        height, width = result.image.shape[:2]
        raise ToolFailure(
            f"nothing to paste: the result has {width} x {height} px, the region {x2 - x1} x {y2 - y1}; "
            "paste results of the region's size, of regions up to max_side"
        )
    height, width = original.shape[:2]
    left, top, right, bottom = region.box
    down = _fade(y2 - y1, feather, (y1 > 0, y2 < height), (top, bottom))
    along = _fade(x2 - x1, feather, (x1 > 0, x2 < width), (left, right))
    weight = np.minimum(down[:, None], along[None])[..., None]
    everything = original.copy()
    under = original[y1:y2, x1:x2]
    everything[y1:y2, x1:x2] = np.rint(under * (1 - weight) + result.image * weight).astype(np.uint8)
    return everything


def pasted_all(
    image: ImageSource, outcomes: Sequence[Outcome], feather: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The whole image, uint8, with all results in it that can be pasted, the later ones on top; and where those come from.

    Raises:
        UserError: an image of more than KEPT_PIXELS.
    """
    pixels, put = whole_image(image), []
    for outcome in outcomes:
        if outcome.result is not None:
            with contextlib.suppress(ToolFailure):
                pixels = pasted(pixels, outcome.region, outcome.result, feather)
                put.append(outcome.record or {})
    return pixels, put


def whole_image(image: ImageSource) -> np.ndarray:
    """All px of an image, uint8 [h, w, 3].

    Raises:
        UserError: more than KEPT_PIXELS.
    """
    if image.frame.width * image.frame.height > KEPT_PIXELS:
        raise UserError(f"--paste writes images of at most {KEPT_PIXELS:,} px; use the region alone")
    return image.window(whole(image), image.frame)


def _fade(side: int, feather: int, inner: tuple[bool, bool], box: tuple[float, float]) -> np.ndarray:
    """Weights along one axis, float32 [side]: 1 inside of the box (begin, end), falling to 0 beyond it, and towards those ends of
    the axis that are inside of the original."""
    place, steps = np.arange(side, dtype=np.float32), feather + 1
    begin, end = math.floor(box[0]), math.ceil(box[1])
    weight = 1 - np.maximum(np.maximum(begin - place, place - (end - 1)), 0) / steps
    if inner[0]:
        weight = np.minimum(weight, (place + 1) / steps)
    if inner[1]:
        weight = np.minimum(weight, (side - place) / steps)
    return np.clip(weight, 0, 1)


def provenance(tool: ImageTool, region: Region, result: ToolResult, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Where a result comes from, as JSON can hold it: tool, parameters, versions, window in px of the original, what is made up."""
    made_up = 0 if result.made_up is None else int(result.made_up.sum())
    return {
        "tool": tool.name,
        "parameters": dict(parameters),
        "window": [round(c) for c in region.window.corners],
        "scale": region.scale,
        "text": result.text,
        "boxes": [_placed(box, region) for box in result.boxes],
        "mask_px": None if result.mask is None else int(result.mask.sum()),
        "made_up_px": made_up,
        "metadata": result.metadata,
        "versions": {"zoomearth_jax": zoomearth_jax.__version__} | {name: _version(name) for name in tool.versions},
    }


def _placed(box, region: Region) -> list[float]:
    """A box of the region in px of the original."""
    left, top = region.window.x1, region.window.y1
    return [round(float(c) / region.scale + start, 1) for c, start in zip(box, (left, top, left, top), strict=True)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
