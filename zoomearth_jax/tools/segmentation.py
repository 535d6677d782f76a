"""Segmentation of what a box holds: GrabCut, SLIC superpixels, or the user's promptable segmenter in ONNX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from skimage.segmentation import slic

from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.tools.image_tool import Context, ImageTool, ToolFailure, ToolResult

_ROUNDS = 5  # of GrabCut
_SUPERPIXELS = 400
_LEAST_SIDE = 4  # px of a box
_MARGIN = 0.5  # of the box's sides: what is further away is often like the object, and no background to tell it from
_FINEST = 400  # px of the longer side that is looked at; GrabCut takes minutes for millions of px
_CORE = 0.1  # of the box's ellipse, which counts as the object
Pixels = tuple[int, int, int, int]


def segmentation_tool(settings: ToolsConfig) -> ImageTool:
    """The tool; its default method is the user's segmenter where there is one.

    Raises:
        UserError: the segmenter's file is none of that kind.
    """
    methods: dict[str, Callable] = {"grabcut": _close(grabcut), "slic": _close(superpixels)}
    if settings.segmenter is not None:
        from zoomearth_jax.tools.onnx_segmenter import OnnxSegmenter

        methods = {"onnx": OnnxSegmenter(Path(settings.segmenter))} | methods
    return ImageTool(
        "segmentation",
        "Outlines the object that a box holds, and says how many px it covers.",
        functools.partial(_segment, methods),
        {"method": {"enum": list(methods), "description": f"how; {next(iter(methods))} where it is left out"}},
        versions=("opencv-python-headless", "scikit-image") + (("onnxruntime",) if "onnx" in methods else ()),
    )


def _segment(methods: dict, region: np.ndarray, context: Context) -> ToolResult:
    method = context.parameters.get("method", next(iter(methods)))
    box = _inside(context.box, region.shape)
    mask = methods[method](region, box)
    px = int(mask.sum())
    if not px:
        return ToolResult(mask=mask, text=f"no object was found by {method}", metadata={"method": method, "px": 0})
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    around = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    original = px / context.scale**2
    x1, y1, x2, y2 = box
    share = px / ((x2 - x1) * (y2 - y1))
    text = f"the object, as found by {method}, covers {original:.0f} px of the original, {100 * share:.0f} % of the box"
    return ToolResult(mask=mask, boxes=(around,), text=text, metadata={"method": method, "px": px})


def _close(method: Callable) -> Callable:
    """The method, handed the box with some px around it only, shrunk where it is large."""

    def within(region: np.ndarray, box: Pixels) -> np.ndarray:
        x1, y1, x2, y2 = box
        x, y = (max(round(_MARGIN * side), 6) for side in (x2 - x1, y2 - y1))
        left, top = max(x1 - x, 0), max(y1 - y, 0)
        rows, columns = slice(top, y2 + y), slice(left, x2 + x)
        mask = np.zeros(region.shape[:2], bool)
        part = np.ascontiguousarray(region[rows, columns])
        scale = min(1.0, _FINEST / max(part.shape))
        size = max(round(part.shape[1] * scale), 1), max(round(part.shape[0] * scale), 1)
        small = cv2.resize(part, size, interpolation=cv2.INTER_AREA) if scale < 1 else part
        named = _inside((np.subtract(box, (left, top) * 2) * scale).tolist(), small.shape)
        found = method(small, named).astype(np.float32)
        mask[rows, columns] = cv2.resize(found, part.shape[1::-1], interpolation=cv2.INTER_LINEAR) > 0.5
        return mask

    return within


def _inside(corners: Sequence[float], shape: tuple[int, ...]) -> Pixels:
    """The box in whole px within the region.

    Raises:
        ToolFailure: it is too small.
    """
    x1, y1, x2, y2 = (round(c) for c in corners)
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, shape[1]), min(y2, shape[0])
    if x2 - x1 < _LEAST_SIDE or y2 - y1 < _LEAST_SIDE:
        raise ToolFailure(f"tool segmentation: the box is smaller than {_LEAST_SIDE} x {_LEAST_SIDE} px")
    return x1, y1, x2, y2


def grabcut(region: np.ndarray, box: Pixels) -> np.ndarray:
    """The object in a box by GrabCut: the box's middle is of the object, what is outside of the box isn't. Bool [h, w]."""
    x1, y1, x2, y2 = box
    height, width = region.shape[:2]
    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    labels[y1:y2, x1:x2] = cv2.GC_PR_FGD
    if x2 - x1 == width and y2 - y1 == height:  # nothing is outside: the rim stands for it
        labels[[0, -1]] = labels[:, [0, -1]] = cv2.GC_BGD
    rows, columns = np.ogrid[:height, :width]
    x, y = (columns - (x1 + x2 - 1) / 2) / ((x2 - x1) / 2), (rows - (y1 + y2 - 1) / 2) / ((y2 - y1) / 2)
    labels[x**2 + y**2 <= _CORE] = cv2.GC_FGD
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # its clusters begin at random
    bgr = np.ascontiguousarray(region[..., ::-1])
    cv2.grabCut(bgr, labels, None, *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def superpixels(region: np.ndarray, box: Pixels) -> np.ndarray:
    """The SLIC superpixels within a box whose colour is nearer to that of the box's middle than to that around it. Bool [h, w]."""
    x1, y1, x2, y2 = box
    lab = cv2.cvtColor(region, cv2.COLOR_RGB2LAB).astype(np.float32)
    parts = slic(region, n_segments=_SUPERPIXELS, compactness=10, start_label=0)
    count = int(parts.max()) + 1
    inside = np.zeros(region.shape[:2], bool)
    inside[y1:y2, x1:x2] = True
    if inside.all():
        inside[[0, -1]] = inside[:, [0, -1]] = False
    sizes = np.bincount(parts.ravel(), minlength=count)
    share = np.bincount(parts[inside], minlength=count) / sizes
    colours = np.stack([np.bincount(parts.ravel(), lab[..., c].ravel(), count) for c in range(3)], -1) / sizes[:, None]
    w, h = (x2 - x1) // 4, (y2 - y1) // 4
    middle = np.median(lab[y1 + h : y2 - h, x1 + w : x2 - w].reshape(-1, 3), axis=0)
    outside = np.median(lab[~inside], axis=0)
    nearer = np.linalg.norm(colours - middle, axis=-1) < np.linalg.norm(colours - outside, axis=-1)
    return (nearer & (share > 0.5))[parts] & inside
