"""Where the pixels of a picture lie in the original: piecewise linear along each axis, so that boxes go both ways."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame


class AxisMap(NamedTuple):
    """One axis; between two knots all px have one scale.

    Attributes:
        picture: the knots in px of the picture, increasing, from 0 to its side.
        original: the same places in px of the original, increasing.
    """

    picture: tuple[int, ...]
    original: tuple[float, ...]

    def pieces(self) -> Iterator[tuple[tuple[int, int], tuple[float, float]]]:
        """The pieces between knots: from where to where in px of the picture, and in px of the original."""
        return zip(itertools.pairwise(self.picture), itertools.pairwise(self.original), strict=True)

    def to_original(self, px: float) -> float:
        """A place in px of the original; what is beyond the picture becomes its border."""
        return float(np.interp(px, self.picture, self.original))

    def to_picture(self, px: float) -> float:
        """A place in px of the picture; what it doesn't show becomes its border."""
        return float(np.interp(px, self.original, self.picture))


@dataclasses.dataclass(frozen=True)
class PictureMap:
    """The map of a picture.

    Attributes:
        window: the place that the picture was asked for, in px of the original.
        x, y: its axes.
    """

    window: Box
    x: AxisMap
    y: AxisMap

    @property
    def frame(self) -> Frame:
        """The picture's frame."""
        return Frame(self.x.picture[-1], self.y.picture[-1])

    @property
    def area(self) -> Box:
        """What it shows of the original, in px of it."""
        (x1, *_, x2), (y1, *_, y2) = self.x.original, self.y.original
        return Box(x1, y1, x2, y2, self.window.frame)

    def shows(self, x: float, y: float) -> bool:
        """Whether it shows a place, in px of the original."""
        x1, y1, x2, y2 = self.area.corners
        return x1 <= x <= x2 and y1 <= y <= y2

    def to_original(self, box: Box) -> Box:
        """A box of the picture in px of the original."""
        (x1, x2), (y1, y2) = map(self.x.to_original, (box.x1, box.x2)), map(self.y.to_original, (box.y1, box.y2))
        return Box(x1, y1, x2, y2, self.window.frame)

    def to_picture(self, box: Box) -> Box:
        """The part of a box of the original that the picture shows, in px of the picture; without area where that is none."""
        (x1, x2), (y1, y2) = map(self.x.to_picture, (box.x1, box.x2)), map(self.y.to_picture, (box.y1, box.y2))
        return Box(x1, y1, x2, y2, self.frame)


def frames_of(maps: Sequence[PictureMap | None]) -> list[Frame | None]:
    """The frames of pictures; None for one without a map."""
    return [None if one is None else one.frame for one in maps]


def crop_map(window: Box, size: Frame) -> PictureMap:
    """The map of a picture of `size` px that shows a window, each axis by its own scale."""
    x = AxisMap((0, size.width), (window.x1, window.x2))
    return PictureMap(window, x, AxisMap((0, size.height), (window.y1, window.y2)))


FOVEA = 0.5  # share of a picture's sides that the window of a foveated view has at least


def fovea_map(window: Box, size: Frame) -> PictureMap:
    """The map of a picture of `size` px that shows the whole image, the window of it enlarged.

    Each axis by itself, in up to three pieces: before the window, the window, after it. The window gets the share of the side that
    it has of the image's, but at least FOVEA; what is left is shared by the length of the other two. In whole px, and every
    piece that there is has one at least.
    """
    frame = window.frame
    x = _fovea_axis(window.x1, window.x2, frame.width, size.width)
    return PictureMap(window, x, _fovea_axis(window.y1, window.y2, frame.height, size.height))


def _fovea_axis(low: float, high: float, limit: int, side: int) -> AxisMap:
    before, after = low, limit - high
    around = (before > 0) + (after > 0)
    fovea = side if not around else min(round(side * max(FOVEA, (high - low) / limit)), side - around)
    left = side - fovea
    first = min(max(round(left * before / (before + after)), before > 0), left - (after > 0)) if around else 0
    knots = {0: 0.0, first: low, first + fovea: high, side: float(limit)}
    return AxisMap(tuple(knots), tuple(knots.values()))
