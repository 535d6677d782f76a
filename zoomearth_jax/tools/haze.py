"""Thin cloud and haze: how much there is, and the region without it (dark channel, guided filter)."""

from __future__ import annotations

import cv2
import numpy as np

LEAST_HAZE = 0.32  # brightness that the veil adds in the hazier quarter of a region: of 145 clear windows none came out above 0.31
_WHITE = 0.9  # brightness of what is nothing but veil
_DARKEST = 0.05  # brightness that the darkest things have without a veil
_COLOURED = 1.5  # how much colour speaks against a veil, which is white: water is bright, but not white
_RADIUS = 10  # px: things smaller than that don't count as veil, however white
_SMOOTH = 60  # px over which the veil follows the image's edges
_CLEAREST, _THICKEST = 1.0, 0.15  # bounds of what comes through
_CELLS = 4  # a side
_FLAT = 0.02  # spread of brightness below which nothing tells a veil from grey ground


def haze_level(region: np.ndarray) -> float:
    """The brightness (0 … 1) that a white veil adds in the hazier quarter of a region, judged by its darkest px.

    Args:
        region: uint8 [h, w, 3].
    """
    light = _light(region)
    if light.mean(-1).std() < _FLAT:
        return 0.0
    height, width = light.shape[:2]
    down, right = (max(1, min(_CELLS, side // 32)) for side in (height, width))
    levels = []
    for row in range(down):
        for column in range(right):
            rows = slice(row * height // down, (row + 1) * height // down)
            columns = slice(column * width // right, (column + 1) * width // right)
            levels.append(_darkest(light[rows, columns].reshape(-1, 3)))
    return float(np.percentile(levels, 75))


def _light(region: np.ndarray) -> np.ndarray:
    """Brightness 0 … 1, float32 [h, w, 3], slightly blurred against noise."""
    return cv2.GaussianBlur(region.astype(np.float32) / 255, (0, 0), 1.0)


def _darkest(pixels: np.ndarray) -> float:
    """The veil over the darkest of some px [n, 3]."""
    brightness = pixels.max(-1)
    mean = pixels[brightness <= np.percentile(brightness, 2)].mean(0)
    return max(0.0, float(mean.min() - _COLOURED * (mean.max() - mean.min())))


def without_haze(region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The region without its veil, uint8 [h, w, 3], and the share of light that came through, float32 [h, w]."""
    light = _light(region)
    low, high = light.min(-1), light.max(-1)
    white = np.maximum(low - _COLOURED * (high - low), 0)  # the dark channel, less where there is colour
    patch = np.ones((2 * _RADIUS + 1,) * 2, np.uint8)
    bright = region.astype(np.float32) / 255
    veil = _guided(bright.mean(-1), cv2.erode(white, patch), _SMOOTH, 1e-2)
    through = np.clip(1 - np.maximum(veil - _DARKEST, 0) / (_WHITE - _DARKEST), _THICKEST, _CLEAREST)
    clear = (bright - _WHITE) / through[..., None] + _WHITE
    return np.clip(np.rint(clear * 255), 0, 255).astype(np.uint8), through


def _guided(guide: np.ndarray, plane: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """A plane [h, w] smoothed along the edges of another (guided filter of He et al., 2013)."""

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_plane = mean(guide), mean(plane)
    slope = (mean(guide * plane) - mean_guide * mean_plane) / (mean(guide * guide) - mean_guide**2 + epsilon)
    return mean(slope) * guide + mean(mean_plane - slope * mean_guide)
