"""Cloud removal: thin cloud and haze are taken off where there are any; thick cloud is filled under the user's mask."""

from __future__ import annotations

import cv2
import numpy as np

from zoomearth_jax.tools.haze import LEAST_HAZE, haze_level, without_haze
from zoomearth_jax.tools.image_tool import Context, ImageTool, ToolFailure, ToolResult

_RING = 15  # px around thick cloud, by which other dates are fitted to this one
_SOFT = 5  # px over which a filling fades in


def _remove_clouds(region: np.ndarray, context: Context) -> ToolResult:
    level, image, wish = haze_level(region), region, context.parameters.get("haze", "auto")
    removed = wish == "always" or (wish == "auto" and level >= LEAST_HAZE)
    metadata: dict = {"haze": round(level, 3), "haze_removed": removed}
    if removed:
        image, through = without_haze(region)
        metadata["light_that_came_through"] = round(float(through.mean()), 3)
        texts = [f"haze of {level:.2f} was taken off"]
    else:
        texts = [f"no haze that is sure ({level:.2f} of at least {LEAST_HAZE}); no haze was taken off"]
    made_up = None
    if context.mask is not None and context.mask.any():
        image, made_up, filled = _filled(image, context)
        metadata |= filled
        texts.append(filled["thick_cloud"])
    return ToolResult(image, text="; ".join(texts), metadata=metadata, made_up=made_up)


def _filled(image: np.ndarray, context: Context) -> tuple[np.ndarray, np.ndarray | None, dict]:
    """The image with something in place of thick cloud, what of it is made up, and what is to be said."""
    cloud = context.mask
    assert cloud is not None
    if cloud.all():
        raise ToolFailure("tool cloud_removal: the mask covers the whole region; nothing is left to go by")
    share = f"{100 * cloud.mean():.0f} % of the region"
    if context.others:
        fitted = [_fitted(other, image, cloud) for other in context.others]
        filling = np.median(fitted, axis=0)
        said = {
            "thick_cloud": f"thick cloud ({share}) was filled from {len(fitted)} other {'date' if len(fitted) == 1 else 'dates'}",
            "dates": len(fitted),
        }
        return _blended(image, filling, cloud), None, said
    filling = cv2.inpaint(np.ascontiguousarray(image), cloud.astype(np.uint8), _SOFT, cv2.INPAINT_TELEA)
    said = {"thick_cloud": f"thick cloud ({share}) was painted over from its edges: what is shown there is made up"}
    return np.where(cloud[..., None], filling, image), cloud, said


def _fitted(other: np.ndarray, image: np.ndarray, cloud: np.ndarray) -> np.ndarray:
    """Another date with this one's brightness and contrast around the cloud, float32 [h, w, 3]."""
    patch = np.ones((2 * _RING + 1,) * 2, np.uint8)
    ring = (cv2.dilate(cloud.astype(np.uint8), patch) > 0) & ~cloud
    there, here = other.astype(np.float32), image.astype(np.float32)
    spread = there[ring].std(0)
    gain = np.where(spread > 1, here[ring].std(0) / np.maximum(spread, 1), 1).clip(0.5, 2)
    return (there - there[ring].mean(0)) * gain + here[ring].mean(0)


def _blended(image: np.ndarray, filling: np.ndarray, cloud: np.ndarray) -> np.ndarray:
    """The filling under the cloud, fading out over some px beyond it."""
    distance = cv2.distanceTransform((~cloud).astype(np.uint8), cv2.DIST_L2, 3)
    weight = np.clip(1 - distance / (_SOFT + 1), 0, 1)[..., None]
    return np.clip(np.rint(image * (1 - weight) + filling * weight), 0, 255).astype(np.uint8)


CLOUD_REMOVAL = ImageTool(
    "cloud_removal",
    "Takes haze and thin cloud off a region. Thick cloud stays, for nothing is seen below it. A clear region stays as it is.",
    _remove_clouds,
    {
        "haze": {
            "enum": ["auto", "always", "never"],
            "description": "when haze is taken off; auto, where it is surely there, if left out",
        }
    },
    versions=("opencv-python-headless",),
)
