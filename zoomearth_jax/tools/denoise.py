"""Denoising by non-local means; how strong the noise is is estimated from the region itself."""

from __future__ import annotations

import math

import cv2
import numpy as np
from skimage.restoration import denoise_nl_means

from zoomearth_jax.tools.image_tool import Context, ImageTool, ToolResult

LEAST_SIGMA = 3.0  # in levels of 0 ... 255: clean aerial images come out at up to 2.2, and weaker noise is hardly seen
_BLOCK = 16  # px
_FLATTEST = 5  # per cent of the blocks
_BIAS = 0.89  # the estimate of pure noise by the flattest blocks, divided by its sigma
_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6  # keeps the sigma of white noise
_STRENGTH = 0.55  # of the filter, in sigmas


def noise_sigma(region: np.ndarray) -> float:
    """The standard deviation of additive noise, in levels of 0 … 255.

    It is measured where the image is flattest. Textures look like noise there, but their channels go together and those of noise
    don't: so differences of channels are measured. A grey image has none; then its texture counts as noise.

    Args:
        region: uint8 [h, w, 3].
    """
    red, green, blue = np.moveaxis(region.astype(np.float32), -1, 0)
    if (red == green).all() and (blue == green).all():
        return _flattest(green)
    return (_flattest(red - green) + _flattest(blue - green)) / (2 * math.sqrt(2))


def _flattest(plane: np.ndarray) -> float:
    """The sigma of a plane [h, w] in its flattest blocks."""
    power = cv2.filter2D(plane, cv2.CV_32F, _KERNEL) ** 2
    height, width = power.shape
    block = min(_BLOCK, height, width)
    rows, columns = height // block, width // block
    means = power[: rows * block, : columns * block].reshape(rows, block, columns, block).mean((1, 3))
    return float(np.sqrt(np.percentile(means, _FLATTEST))) / _BIAS


def denoised(region: np.ndarray, sigma: float) -> np.ndarray:
    """The region without noise of that sigma, uint8 [h, w, 3]."""
    smooth = denoise_nl_means(
        region.astype(np.float32) / 255,
        patch_size=3,
        patch_distance=6,
        h=_STRENGTH * sigma / 255,
        sigma=sigma / 255,
        fast_mode=True,
        channel_axis=-1,
    )
    return np.clip(np.rint(smooth * 255), 0, 255).astype(np.uint8)


def _denoise(region: np.ndarray, context: Context) -> ToolResult:
    given = context.parameters.get("sigma")
    sigma = noise_sigma(region) if given is None else float(given)
    metadata = {"sigma": round(sigma, 2), "sigma_estimated": given is None, "denoised": sigma >= LEAST_SIGMA}
    if sigma < LEAST_SIGMA:
        return ToolResult(region, text=f"hardly any noise (sigma {sigma:.1f}); nothing was changed", metadata=metadata)
    text = f"noise of sigma {sigma:.1f} was reduced by non-local means"
    return ToolResult(denoised(region, sigma), text=text, metadata=metadata)


DENOISE = ImageTool(
    "denoise",
    "Reduces noise (grain) in a region. A region without noise stays as it is.",
    _denoise,
    {
        "sigma": {
            "type": "number",
            "minimum": 0,
            "maximum": 100,
            "description": "standard deviation of the noise in levels of 0 to 255; estimated where it is left out",
        }
    },
    versions=("scikit-image", "opencv-python-headless"),
)
