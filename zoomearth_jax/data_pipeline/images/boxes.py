"""Boxes that carry their frame. One place converts, clamps and grows them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from zoomearth_jax.configs.episode import rounded

ANNOTATION_PX = 1024  # LRS-GRO's boxes are in px of the image shrunk, or enlarged, to this longest side


@dataclasses.dataclass(frozen=True)
class Frame:
    """A coordinate frame: a picture of an image that is width x height px, x to the right, y down."""

    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Box:
    """Corners x1 <= x2, y1 <= y2 in px of `frame`."""

    x1: float
    y1: float
    x2: float
    y2: float
    frame: Frame

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2)."""
        return self.x1, self.y1, self.x2, self.y2

    def to(self, frame: Frame) -> Box:
        """The same part of the image in another frame; each axis has its own scale (views are rounded to patches)."""
        sx, sy = frame.width / self.frame.width, frame.height / self.frame.height
        return Box(self.x1 * sx, self.y1 * sy, self.x2 * sx, self.y2 * sy, frame)


def from_annotation(corners: Sequence[float], image: Frame) -> Box:
    """The box in px of `image` for corners in LRS-GRO's frame.

    One factor serves both axes: longest side / 1024, the released `scale`. The picture that annotators saw had its shorter
    side cut to whole px, which moves a corner by less than one px of that picture.
    """
    factor = max(image.width, image.height) / ANNOTATION_PX
    x1, y1, x2, y2 = (corner * factor for corner in corners)
    return Box(x1, y1, x2, y2, image)


def clamped(box: Box) -> Box | None:
    """The part of a box inside its frame; None without any area there."""
    x1, x2 = (min(max(x, 0.0), box.frame.width) for x in (box.x1, box.x2))
    y1, y2 = (min(max(y, 0.0), box.frame.height) for y in (box.y1, box.y2))
    return Box(x1, y1, x2, y2, box.frame) if x1 < x2 and y1 < y2 else None


def _grow(low: float, high: float, minimum: int, limit: int) -> tuple[int, int]:
    start, stop = max(math.floor(low), 0), min(math.ceil(high), limit)
    missing = min(minimum, limit) - (stop - start)
    if missing > 0:
        start -= missing // 2
        stop += missing - missing // 2
        shift = max(-start, 0) - max(stop - limit, 0)
        start, stop = start + shift, stop + shift
    return start, stop


def _moved_inside(start: int, side: int, limit: int) -> tuple[int, int]:
    start = max(min(start, limit - side), 0)
    return start, min(start + side, limit)


def _reference_window(box: Box, side: int) -> Box:
    x1, y1, x2, y2 = map(math.trunc, box.corners)
    large = clamped(Box(x1, y1, x2, y2, box.frame)) if min(x2 - x1, y2 - y1) >= side else None
    if large is not None:
        x1, y1, x2, y2 = map(int, large.corners)
        return Box(x1, y1, x2, y2, box.frame)
    left, right = _moved_inside((x1 + x2) // 2 - side // 2, side, box.frame.width)
    top, bottom = _moved_inside((y1 + y2) // 2 - side // 2, side, box.frame.height)
    return Box(left, top, right, bottom, box.frame)


def crop_window(box: Box, min_side: int, crop: str = "grow") -> Box:
    """The window that is read for a box: the one that the policy sees. Whole pixels, inside the image.

    Args:
        crop: `grow`: each side shorter than `min_side` grows around the centre, then the window moves inside the image; the
            box is never cut, other than at the image's border. `reference`, the released code's window: corners lose
            their fractions, and where either side is then shorter than `min_side` the window is the square of that side
            around the centre, moved inside the image; long and narrow boxes lose their ends.
    """
    if crop == "reference":
        return _reference_window(box, min_side)
    x1, x2 = _grow(box.x1, box.x2, min_side, box.frame.width)
    y1, y2 = _grow(box.y1, box.y2, min_side, box.frame.height)
    return Box(x1, y1, x2, y2, box.frame)


def wider(window: Box, factor: float) -> Box:
    """A window of whole px with sides `factor` times as long, at most the image's, around the same centre where it fits inside the
    image, else moved inside."""
    frame = window.frame
    width, height = (window.x2 - window.x1) * factor, (window.y2 - window.y1) * factor
    x1, x2 = _grow(window.x1, window.x2, math.ceil(min(width, frame.width)), frame.width)
    y1, y2 = _grow(window.y1, window.y2, math.ceil(min(height, frame.height)), frame.height)
    return Box(x1, y1, x2, y2, frame)


MIN_TOKENS = 4  # that a view has at least: Qwen's min_pixels of 3136


def view_size(width: float, height: float, view_px: int, unit: int) -> Frame:
    """Size of the picture that the model sees of width x height px.

    The longer side shrinks to at most `view_px` (images are enlarged only to reach MIN_TOKENS), then each side is rounded
    to a multiple of `unit`, as Qwen's smart_resize does. Very elongated images are clamped to the view, so that every
    view fits a square one of `rounded(view_px, unit)` px; their aspect ratio then changes.

    Args:
        unit: side of a merged visual token, 28 px.
    """
    scale = min(1.0, view_px / max(width, height))
    width, height = width * scale, height * scale
    tokens = [max(1, round(side / unit)) for side in (width, height)]
    if tokens[0] * tokens[1] < MIN_TOKENS:
        enlarge = math.sqrt(MIN_TOKENS * unit * unit / (width * height))
        tokens = [
            math.ceil(side * enlarge / unit - 1e-9) for side in (width, height)
        ]  # 2 stays 2, whatever the root's last bit
    limit = rounded(view_px, unit)
    return Frame(*(min(side * unit, limit) for side in tokens))
