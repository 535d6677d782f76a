"""Image tools made of what users have: a Python function, or a pipeline of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from zoomearth_jax.errors import UserError
from zoomearth_jax.tools.image_tool import ImageTool, ToolFailure, ToolResult


def from_callable(
    function: Callable, name: str = "", description: str = "", parameters: Mapping | None = None
) -> ImageTool:
    """A tool of a Python function.

    Args:
        function: called with the region, uint8 [h, w, 3], and the `Context`. It gives a `ToolResult`, a picture uint8 [h, w, 3], a
            mask bool [h, w], or a text.
        name, description: those of the function and the first line of its docstring where they are left out.
        parameters: JSON schema of each parameter, by name; without it any are passed on.
    """
    name = name or getattr(function, "__name__", type(function).__name__)
    lines = (getattr(function, "__doc__", None) or "").strip().splitlines()
    description = description or (lines[0] if lines else f"The function {name}.")
    return ImageTool(name, description, lambda region, context: _result(function(region, context)), parameters)


def _result(given: Any) -> ToolResult:
    match given:
        case ToolResult():
            return given
        case np.ndarray() if given.dtype == bool:
            return ToolResult(mask=given)
        case np.ndarray():
            return ToolResult(given)
        case Image.Image():
            return ToolResult(np.array(given.convert("RGB")))
        case str():
            return ToolResult(text=given)
    raise ToolFailure(f"gave a {type(given).__name__}, not a ToolResult, an array, a picture of Pillow's or a text")


def from_pipeline(pipeline: Callable, name: str, description: str) -> ImageTool:
    """A tool of a pipeline of transformers that takes one picture: image-to-image, image segmentation, depth estimation, object
    detection, or classification.

    Args:
        pipeline: what `transformers.pipeline(...)` gives.
    """
    return ImageTool(
        name,
        description,
        lambda region, _: _piped(pipeline(Image.fromarray(region)), region.shape[:2]),
        versions=("transformers",),
    )


def load_pipeline(path: str) -> ImageTool:
    """The tool of `hf:TASK` or `hf:TASK=MODEL`.

    Raises:
        UserError: the pipeline can't be loaded: no torch, no such task, no such model.
    """
    import transformers

    task, _, model = path.removeprefix("hf:").partition("=")
    try:
        pipeline: Any = transformers.pipeline(task, model=model or None, trust_remote_code=False)  # type: ignore[call-overload]
    except Exception as error:  # of many kinds
        raise UserError(f"tool {path}: no such pipeline ({' '.join(str(error).split()):.160})") from None
    name = task.replace("-", "_")
    return from_pipeline(pipeline, name, f"The {task} of {getattr(pipeline.model, 'name_or_path', model)}.")


def _piped(given: Any, size: tuple[int, ...]) -> ToolResult:
    """The result of what a pipeline gives for a region of that size (h, w)."""
    if isinstance(given, Image.Image):
        return _result(given)
    if isinstance(given, dict) and isinstance(given.get("depth"), Image.Image):
        return _result(given["depth"])
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise ToolFailure(f"the pipeline gave a {type(given).__name__} that no tool can show")
    text = ", ".join(
        f"{one.get('label')} {one['score']:.2f}" if one.get("score") else str(one.get("label")) for one in given
    )
    masks = [np.asarray(one["mask"]) > 0 for one in given if "mask" in one]
    boxes = tuple(
        tuple(float(one["box"][side]) for side in ("xmin", "ymin", "xmax", "ymax")) for one in given if "box" in one
    )
    mask = np.logical_or.reduce(masks) if masks else None
    if mask is not None and mask.shape != size:
        raise ToolFailure(f"the pipeline gave masks of {list(mask.shape)} for a region of {list(size)}")
    return ToolResult(mask=mask, boxes=boxes, text=text or "nothing was found")  # type: ignore[arg-type]
