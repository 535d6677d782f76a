"""How image files become 8-bit RGB, and how large they may be."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from zoomearth_jax.errors import UserError

MAX_PIXELS = 1_000_000_000  # images are read strip by strip: memory follows the width, but time the area
LEAST_TO_LARGEST = ("min", "max")


def _of_words(count: int, metavar: str, value) -> PrimitiveConstructorSpec:
    """A flag of exactly so many words, so that paths may follow it."""
    return PrimitiveConstructorSpec(
        nargs=count,
        metavar=metavar,
        instance_from_str=lambda words: tuple(map(value, words)),
        is_instance=lambda given: given is None or isinstance(given, tuple),
        str_from_instance=lambda given: list(map(str, given or ())),
    )


def _number_or_word(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """How image files become 8-bit RGB, and how large they may be.

    Attributes:
        bands: the numbers, from 1, of the bands that are red, green and blue; without them the first three of at most four.
        stretch: what becomes 0 and 255 where pixels aren't 8-bit: two values (0 3000), two percentiles of the image's own
            values (2% 98%), or its least and its largest value (min max), which the file's metadata states or which are found by
            reading it. The same range serves all three bands. Without it such files are refused.
        max_pixels: files of more are refused by their headers.
    """

    bands: Annotated[tuple[int, int, int] | None, _of_words(3, "R G B", int)] = None
    stretch: Annotated[tuple[float | str, ...], _of_words(2, "LOW HIGH", _number_or_word)] = ()
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        if self.bands is not None and (len(self.bands) != 3 or min(self.bands) < 1):
            raise UserError("bands: three numbers from 1, of the bands that are red, green and blue")
        if self.max_pixels < 1:
            raise UserError("max_pixels: a positive number of px")
        if self.stretch and self.stretch != LEAST_TO_LARGEST:
            self._check_stretch()

    def _check_stretch(self) -> None:
        percents = [isinstance(value, str) for value in self.stretch]
        try:
            low, high = (float(str(value).removesuffix("%")) for value in self.stretch)
        except ValueError:
            low = high = math.nan
        words = [value for value in self.stretch if isinstance(value, str)]
        if not (math.isfinite(low) and math.isfinite(high)) or any(percents) != all(percents):
            low = high = math.nan
        if not all(word.endswith("%") for word in words) or math.isnan(low):
            said = " ".join(map(str, self.stretch))
            raise UserError(f"stretch: two values (0 3000), two percentiles (2% 98%), or min max; not {said!r}")
        if not low < high:
            raise UserError("stretch: LOW must be below HIGH")
        if words and not 0 <= low < high <= 100:
            raise UserError("stretch: percentiles are between 0% and 100%")

    @property
    def values(self) -> tuple[float, float] | None:
        """LOW and HIGH where the setting gives them as values."""
        given = self.stretch and not isinstance(self.stretch[0], str)
        return (float(self.stretch[0]), float(self.stretch[1])) if given else None

    @property
    def percentiles(self) -> tuple[float, float] | None:
        """The two percentiles, 0 to 100, where the setting gives those."""
        if not self.stretch or self.values or self.stretch == LEAST_TO_LARGEST:
            return None
        low, high = (float(str(value).removesuffix("%")) for value in self.stretch)
        return low, high
