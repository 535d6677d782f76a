"""All boxes that a text lists, in the protocol's form; `protocol.parse_box` reads the one that is looked at."""

from __future__ import annotations

import math
import re

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.text.protocol import named_box, without_thoughts

_ENTRY = re.compile(r"\{[^{}]*\}")
_CORNERS = re.compile(r'"bbox_2d"\s*:\s*\[([^\[\]]*)\]')
_SOURCE = re.compile(r'"source"\s*:\s*"([^"]*)"')
_OVERVIEW = ("overview", "original_image")  # the sources that are the overview; it needn't be named


def listed_boxes(text: str, view: Frame) -> list[Box | None]:
    """The boxes of a text outside of its thoughts: of each {"bbox_2d": [x1, y1, x2, y2], …} in px of the view one, cut at the view.

    None stands for one that names no box: without four finite numbers, without area, or outside the view. Entries whose
    "source" is another picture than the overview are passed over.
    """
    boxes: list[Box | None] = []
    for entry in _ENTRY.findall(without_thoughts(text)):
        found, source = _CORNERS.search(entry), _SOURCE.search(entry)
        if found and (source is None or source[1] in _OVERVIEW):
            boxes.append(_box(found[1], view))
    return boxes


def _box(numbers: str, view: Frame) -> Box | None:
    try:
        corners = [float(part) for part in numbers.split(",")]
    except ValueError:
        return None
    return named_box(corners, view).box if len(corners) == 4 and all(map(math.isfinite, corners)) else None
