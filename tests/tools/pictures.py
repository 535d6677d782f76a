"""Pictures for tests of image tools: ground of all sizes of detail, and spoilt copies of it."""

import cv2
import numpy as np


def ground(side=192, seed=0) -> np.ndarray:
    """Fields with shadows and texture, uint8: channels go together, the darkest px are dark."""
    rng = np.random.default_rng(seed)
    plane = np.zeros((side, side), np.float32)
    for cells, weight in ((4, 90), (24, 60), (96, 25)):
        plane += weight * cv2.resize(
            rng.random((cells, cells)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC
        )
    plane[rng.random((side, side)) < 0.002] = 0
    shadows = cv2.resize((rng.random((16, 16)) < 0.2).astype(np.float32), (side, side), interpolation=cv2.INTER_NEAREST)
    plane *= 1 - 0.9 * shadows
    return levels(plane[..., None] * np.array([0.9, 1.0, 0.75]))


def levels(values) -> np.ndarray:
    """Values as uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def psnr(clean, picture) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.mean((clean.astype(float) - picture.astype(float)) ** 2)))
