"""Crop and zoom as an image tool: what a box holds, enlarged by a trained network where there is one, else by Lanczos."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.tools.image_tool import MAX_PIXELS, Context, ImageTool, ToolFailure, ToolResult


def zoom_tool(settings: ToolsConfig) -> ImageTool:
    """The tool.

    Raises:
        UserError: the settings name a network that can't be read.
    """
    network = None
    if settings.super_resolution is not None:
        from zoomearth_jax.tools.super_resolution import SuperResolution

        network = SuperResolution(settings.super_resolution)
    return ImageTool(
        "zoom",
        "Shows what a box holds at full resolution, and enlarged where a scale is given.",
        functools.partial(_zoom, network),
        {"scale": {"enum": [1, 2, 4], "description": "how many times as many px a side; 1 where it is left out"}},
        around=False,
        versions=("pillow",) if network is None else ("jax", "pillow"),
    )


def _zoom(network, region: np.ndarray, context: Context) -> ToolResult:
    scale = int(context.parameters.get("scale", 1))
    height, width = region.shape[:2]
    if height * width * scale**2 > MAX_PIXELS:
        raise ToolFailure(f"tool zoom: {width} x {height} px are too many for a scale of {scale}; name a smaller box")
    if scale == 1:
        return ToolResult(region, text="as it is", metadata={"scale": 1, "enlarged_by": "nothing"})
    if network is None:
        return ToolResult(
            lanczos(region, scale), text=f"enlarged {scale} times by Lanczos", metadata=_said(scale, "Lanczos")
        )
    image = region
    while image.shape[0] < height * scale:
        image = network(image)
    by = "the network of @upscalerjs/esrgan-slim"
    return ToolResult(image, text=f"enlarged {scale} times by {by}", metadata=_said(scale, by))


def _said(scale: int, by: str) -> dict:
    return {"scale": scale, "enlarged_by": by}


def lanczos(region: np.ndarray, scale: int) -> np.ndarray:
    """The region with `scale` times as many px a side by Lanczos' filter, uint8."""
    height, width = region.shape[:2]
    larger = Image.fromarray(region).resize((width * scale, height * scale), Image.Resampling.LANCZOS)
    return np.asarray(larger)
