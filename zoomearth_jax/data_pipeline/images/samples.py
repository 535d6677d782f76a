"""What the samples of an image file mean, and how they become 8-bit RGB: one rule, whichever library decoded them.

    photometric interpretation      becomes
    grey, black is zero             grey; values of fewer than 8 bits are spread over 0 ... 255; three or four bands are RGB
    grey, white is zero             the same, then 255 - value
    RGB                             its first three bands
    palette                         the colour of each value (the upper 8 bits of its entries)
    separated (CMYK)                RGB as Pillow converts it, without colour profiles
    YCbCr, CIE Lab of 8 bits        RGB as the decoding library converts it
    premultiplied alpha             colours are divided by it first, as Pillow does; all alpha is then dropped
    anything else                   refused, unless bands are chosen

Where the caller chooses bands, these are taken as they are stored. Wider values than 8 bits are stretched before they are
interpreted, so that LOW and HIGH are values as they stand in the file.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

_TABLE_BITS = 16  # integers up to this width are stretched by a table


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of a file.

    Attributes:
        count: number of bands.
        dtype: numpy's name of their type.
        bits: how many bits of 8-bit values count: 8, or fewer.
        kind: `grey`, `rgb`, `cmyk` or `palette`, or why they can't be interpreted.
        inverted: white is zero.
        alpha: the band (from 0) of an alpha by which colours were multiplied; None without one.
        palette: the colours of values, uint8 [values, 3], where kind is `palette`.
        nodata: the value of pixels without data, if the file states one.
        statistics: the least and largest value of all bands, if the file states them.
    """

    count: int
    dtype: str
    bits: int = 8
    kind: str = "rgb"
    inverted: bool = False
    alpha: int | None = None
    palette: np.ndarray | None = None
    nodata: float | None = None
    statistics: tuple[float, float] | None = None

    @property
    def known(self) -> bool:
        """Whether `kind` says how they are interpreted."""
        return self.kind in _COLOURS

    @property
    def needs_stretch(self) -> bool:
        """Whether LOW and HIGH are needed to make them 8-bit."""
        return self.dtype != "uint8" and self.kind != "palette"

    def wanted(self, bands: tuple[int, ...] | None) -> list[int]:
        """The bands to read, from 0.

        Args:
            bands: the caller's choice, from 1.
        """
        if bands is not None:
            return [band - 1 for band in bands]
        colours = list(range(_COLOURS[self.kind]))
        return colours if self.alpha is None else [*colours, self.alpha]

    def to_rgb(self, pixels: np.ndarray, chosen: bool, stretch: tuple[float, float] | None) -> np.ndarray:
        """The `wanted` bands [h, w, n] -> uint8 [h, w, 3].

        Args:
            chosen: the bands are the caller's choice.
            stretch: LOW and HIGH; needed where `needs_stretch`.
        """
        if chosen:
            return np.ascontiguousarray(self._eight_bits(pixels, stretch))
        if self.kind == "palette":
            assert self.palette is not None
            return self.palette[np.minimum(pixels[..., 0], len(self.palette) - 1)]
        if self.alpha is not None:
            pixels = _divided(pixels)
        pixels = self._eight_bits(pixels, stretch)
        if self.inverted:
            pixels = 255 - pixels
        if self.kind == "cmyk":
            inks = np.ascontiguousarray(pixels)
            return np.asarray(Image.frombuffer("CMYK", inks.shape[1::-1], inks.tobytes()).convert("RGB"))
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))

    def _eight_bits(self, pixels: np.ndarray, stretch: tuple[float, float] | None) -> np.ndarray:
        if pixels.dtype == np.uint8:
            most = 2**self.bits - 1
            return (
                pixels if most == 255 else (np.minimum(pixels, most).astype(np.uint16) * 255 // most).astype(np.uint8)
            )
        assert stretch is not None  # see `needs_stretch`
        if pixels.dtype.kind in "iu" and pixels.dtype.itemsize * 8 <= _TABLE_BITS:
            values = np.arange(2 ** (pixels.dtype.itemsize * 8)).astype(pixels.dtype)  # wraps to every value
            return stretched(values, stretch)[pixels.view(f"u{pixels.dtype.itemsize}")]
        return stretched(pixels, stretch)


_COLOURS = {"grey": 1, "rgb": 3, "cmyk": 4, "palette": 1}


def stretched(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Values as uint8: LOW and less become 0, HIGH and more 255, what is no number 0."""
    low, high = limits
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).round().clip(0, 255).astype(np.uint8)


def _divided(pixels: np.ndarray) -> np.ndarray:
    """Colours without the alpha [h, w, colours + 1] that they were multiplied by: [h, w, colours] of the same type."""
    colours, alpha = pixels[..., :-1], pixels[..., -1:]
    if pixels.dtype.kind not in "iu":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(alpha > 0, colours / alpha, colours).astype(pixels.dtype)
    most = np.iinfo(pixels.dtype).max
    wide = colours.astype(np.uint64) * most // np.maximum(alpha, 1).astype(np.uint64)
    return np.where(alpha > 0, np.minimum(wide, most), colours).astype(pixels.dtype)
