"""Image editing: recolour, erase, sharpen and blur what a box holds; edits told in words go to an address of the user's."""

from __future__ import annotations

import colorsys
import functools
import re

import cv2
import numpy as np

from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.tools.image_tool import Context, ImageTool, ToolFailure, ToolResult

_COLOURS = {
    "red": 0,
    "orange": 30,
    "yellow": 60,
    "green": 120,
    "cyan": 180,
    "blue": 220,
    "purple": 280,
    "pink": 330,
}  # hue in degrees
_HEX = re.compile("#[0-9a-fA-F]{6}")


def edit_tool(settings: ToolsConfig) -> ImageTool:
    """The tool; it takes an instruction in words only where the user gave an address for those."""
    operations = ["recolour", "erase", "sharpen", "blur"]
    parameters: dict = {
        "operation": {"enum": operations, "description": "what is done to the inside of the box"},
        "colour": {
            "type": "string",
            "description": f"of recolour: {', '.join(_COLOURS)}, or #rrggbb",
        },
        "amount": {
            "type": "number",
            "minimum": 0,
            "maximum": 10,
            "description": "of sharpen its strength, of blur its radius in px; 1 and 3 where it is left out",
        },
    }
    words = None
    if settings.editor:
        from zoomearth_jax.tools.http_tool import HttpCall

        words = HttpCall("edit", settings.editor, settings.timeout_s)
        parameters["operation"] = {"enum": [*operations, "instruction"], "description": "what is done"}
        parameters["instruction"] = {"type": "string", "description": "of the operation instruction: the edit in words"}
    return ImageTool(
        "edit",
        "Changes what a box holds: gives it another colour, erases it, sharpens or blurs it.",
        functools.partial(_edit, words),
        parameters,
        versions=("opencv-python-headless",),
    )


def _edit(words, region: np.ndarray, context: Context) -> ToolResult:
    operation = context.parameters.get("operation")
    if operation == "instruction":
        if not context.parameters.get("instruction"):
            raise ToolFailure("tool edit: the operation instruction needs an instruction")
        return _told(words(region, context), region)
    chosen = context.mask if context.mask is not None else _box_mask(context, region.shape)
    match operation:
        case "recolour":
            edited, made_up = recoloured(region, _hue(context.parameters.get("colour"))), None
        case "erase":
            if chosen.all():
                raise ToolFailure("tool edit: nothing is left around what is to be erased; name a smaller box")
            edited = cv2.inpaint(np.ascontiguousarray(region), chosen.astype(np.uint8), 5, cv2.INPAINT_TELEA)
            made_up = chosen
        case "sharpen":
            edited, made_up = sharpened(region, float(context.parameters.get("amount", 1))), None
        case "blur":
            radius = float(context.parameters.get("amount", 3))
            edited, made_up = cv2.GaussianBlur(region, (0, 0), max(radius, 0.1)), None
        case _:
            raise ToolFailure("tool edit: name an operation: recolour, erase, sharpen or blur")
    image = np.where(chosen[..., None], edited, region)
    text = f"{operation} was done to {int(chosen.sum())} px"
    text += "; what is shown there is made up" if made_up is not None else ""
    return ToolResult(image, text=text, metadata={"operation": operation}, made_up=made_up)


def _told(result: ToolResult, region: np.ndarray) -> ToolResult:
    """The answer of an address that edits by words: wherever it differs from the region it is made up."""
    if result.image is None or result.image.shape != region.shape:
        return result
    changed = (result.image != region).any(-1)
    said = result.text or "the instruction was followed"
    return ToolResult(
        result.image, text=f"{said}; what was changed is made up", metadata=result.metadata, made_up=changed
    )


def _box_mask(context: Context, shape: tuple[int, ...]) -> np.ndarray:
    x1, y1, x2, y2 = (max(round(corner), 0) for corner in context.box)
    mask = np.zeros(shape[:2], bool)
    mask[y1:y2, x1:x2] = True
    if not mask.any():
        raise ToolFailure("tool edit: the box holds no px")
    return mask


def _hue(colour) -> float:
    """The hue of a colour, 0 … 1."""
    if isinstance(colour, str) and _HEX.fullmatch(colour):
        return colorsys.rgb_to_hsv(*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)))[0]
    if colour not in _COLOURS:
        raise ToolFailure(f"tool edit: recolour needs a colour: {', '.join(_COLOURS)}, or #rrggbb")
    return _COLOURS[colour] / 360


def recoloured(region: np.ndarray, hue: float) -> np.ndarray:
    """The region with one hue (0 … 1) throughout, at least half saturated, as bright as before; uint8."""
    hsv = cv2.cvtColor(region, cv2.COLOR_RGB2HSV_FULL)  # hue 0 ... 255
    hsv[..., 0], hsv[..., 1] = round(hue * 255), np.maximum(hsv[..., 1], 128)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def sharpened(region: np.ndarray, strength: float) -> np.ndarray:
    """The region with its finest detail (below 2 px) stronger: unsharp masking; uint8."""
    light = region.astype(np.float32)
    detail = light - cv2.GaussianBlur(light, (0, 0), 1.5)
    return np.clip(np.rint(light + strength * detail), 0, 255).astype(np.uint8)
