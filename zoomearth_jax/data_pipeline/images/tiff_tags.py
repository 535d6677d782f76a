"""The tags of a TIFF's first image that say what its samples mean (TIFF 6.0 and BigTIFF), read by Pillow."""

from __future__ import annotations

import dataclasses
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from zoomearth_jax.errors import BrokenImage

_BITS, _CODEC, _PHOTOMETRIC, _SAMPLES, _PLANAR, _PALETTE, _INKS, _EXTRA = 258, 259, 262, 277, 284, 320, 332, 338
_SIZES = (279, 325)  # bytes of strips and of tiles
JPEG = 7
YCBCR = 6
KINDS = {0: "grey", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk", 6: "rgb", 8: "rgb"}  # the last two converted by GDAL
NAMES = {
    4: "a transparency mask",
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "a colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
    51177: "depth",
}

warnings.filterwarnings("ignore", module="PIL.TiffImagePlugin")  # GDAL says the same of broken tags, or refuses them


@dataclasses.dataclass(frozen=True)
class TiffTags:
    """What the tags say.

    Attributes:
        photometric: the number of the interpretation.
        samples: bands.
        extra: the kind of each of the last bands that aren't colours: 0 unspecified, 1 premultiplied alpha, 2 other alpha.
        jpeg: whether pixels are packed as JPEG.
        separate: whether each band has strips or tiles of its own.
        sparse: whether some strips or tiles aren't there.
        cmyk: whether the inks of separated samples are cyan, magenta, yellow and black.
        palette: uint8 [values, 3].
    """

    photometric: int
    samples: int
    extra: tuple[int, ...]
    jpeg: bool
    separate: bool
    sparse: bool
    cmyk: bool
    palette: np.ndarray | None

    @property
    def premultiplied(self) -> int | None:
        """The band (from 0) of an alpha by which colours were multiplied."""
        return self.samples - len(self.extra) + self.extra.index(1) if 1 in self.extra else None


def read_tags(path: Path) -> TiffTags:
    """Reads the tags.

    Raises:
        UserError: a directory that can't be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
            directory = ImageFileDirectory_v2(head if head[2:4] in (b"+\0", b"\0+") else head[:8])
            file.seek(directory.next)
            directory.load(file)
            return _tags(directory)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error, OverflowError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BrokenImage(f"{path}: not a readable image (its tags: {said})") from None


def _tags(directory) -> TiffTags:
    def number(tag: int, default: int) -> int:
        value = directory.get(tag, default)
        return int(value[0] if isinstance(value, tuple) else value)

    def numbers(tag: int) -> tuple[int, ...]:
        value = directory.get(tag, ())
        return tuple(int(v) for v in (value if isinstance(value, tuple) else (value,)))

    samples = number(_SAMPLES, 1)
    return TiffTags(
        photometric=number(_PHOTOMETRIC, 1),
        samples=samples,
        extra=numbers(_EXTRA)[:samples],
        jpeg=number(_CODEC, 1) == JPEG,
        separate=number(_PLANAR, 1) == 2 and samples > 1,
        sparse=any(0 in numbers(tag) for tag in _SIZES),
        cmyk=number(_INKS, 1) == 1,
        palette=_palette(numbers(_PALETTE)) if _PALETTE in directory else None,
    )


def _palette(values: tuple[int, ...]) -> np.ndarray:
    """Red, green and blue of all values, one colour after the other, 16 bits each; some writers fill only 8."""
    table = np.array(values).reshape(3, -1).T
    return (table if table.max(initial=0) < 256 else table // 256).astype(np.uint8)
