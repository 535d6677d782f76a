"""Where the pixels of a picture lie in the original: piecewise linear along each axis, so that boxes go both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
