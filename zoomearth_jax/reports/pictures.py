"""Pictures of episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from zoomearth_jax.data_pipeline.images.boxes import Box

GAP_PX = 12  # between pictures
COLORS = {"predicted": (255, 0, 200), "reference": (255, 255, 255)}


def enlarged(picture: np.ndarray, side: int) -> Image.Image:
    """A uint8 picture with its longer side enlarged to at least `side` px, pixels kept square."""
    factor = max(1, round(side / max(picture.shape[:2])))
    return Image.fromarray(picture).resize(
        (picture.shape[1] * factor, picture.shape[0] * factor), Image.Resampling.NEAREST
    )


def with_boxes(overview: np.ndarray, boxes: Sequence[tuple[Box | None, str]], side: int = 448) -> Image.Image:
    """The overview, enlarged, with boxes in any frame drawn on it; a name in COLORS goes with each."""
    picture = enlarged(overview, side)
    draw = ImageDraw.Draw(picture)
    for box, name in boxes:
        if box is not None:
            sx, sy = picture.width / box.frame.width, picture.height / box.frame.height
            corners = (box.x1 * sx, box.y1 * sy, box.x2 * sx, box.y2 * sy)
            draw.rectangle(corners, outline=(0, 0, 0), width=5)
            draw.rectangle(corners, outline=COLORS[name], width=3)
    return picture


def annotate(
    overview: np.ndarray, pictures: Sequence[np.ndarray], boxes: Sequence[tuple[Box | None, str]], side: int = 448
) -> Image.Image:
    """The overview with boxes, and beside it the pictures that followed, uint8 [h, w, 3]."""
    first = with_boxes(overview, boxes, side)
    parts = [first, *(enlarged(picture, first.height) for picture in pictures)]
    width = sum(part.width for part in parts) + GAP_PX * (len(parts) - 1)
    whole, left = Image.new("RGB", (width, max(part.height for part in parts)), (255, 255, 255)), 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + GAP_PX
    return whole
