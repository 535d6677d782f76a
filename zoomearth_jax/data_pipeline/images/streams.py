"""PNG, JPEG, WebP, and TIFFs of JPEG in YCbCr, through libvips: decoded from top to bottom, Pillow's pixels bit for bit."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.data_pipeline.images.complaints import OF_JPEG, WrongPixels, heard, warn
from zoomearth_jax.data_pipeline.images.samples import Samples
from zoomearth_jax.errors import BrokenImage

MAX_WHOLE_PIXELS = 100_000_000  # of files that can only be decoded whole: 0.4 GB
_LOADERS = ("Tiff", "Png", "Jpeg", "Webp")
_DTYPES = {
    "uchar": "uint8",
    "char": "int8",
    "ushort": "uint16",
    "short": "int16",
    "uint": "uint32",
    "int": "int32",
    "float": "float32",
    "double": "float64",
}

# Everything but the four loaders stays shut, whatever a file claims to be.
pyvips.operation_block_set("VipsForeignLoad", True)
for _name in _LOADERS:
    pyvips.operation_block_set(f"VipsForeignLoad{_name}", False)
pyvips.cache_set_max(0)  # files may change
pyvips.concurrency_set(1)  # callers have threads of their own


class Stream:
    """A file that libvips reads."""

    def __init__(self, path: Path, loader: str):
        """Reads the header only.

        Args:
            loader: `tiff`, `png`, `jpeg` or `webp`.

        Raises:
            UserError: unreadable.
        """
        self.path, self._loader = path, loader
        self._clean = without_junk(path) if loader == "jpeg" else None
        header = self._open()
        self.frame = Frame(header.width, header.height)
        kind = (
            "cmyk" if header.interpretation == "cmyk" and header.bands >= 4 else "rgb" if header.bands >= 3 else "grey"
        )
        self.samples = Samples(header.bands, _DTYPES.get(header.format, header.format), kind=kind)
        self.whole = loader == "webp" or bool(header.get_typeof("interlaced") and header.get("interlaced"))

    @property
    def driver(self) -> str:
        """The driver by which GDAL knows such files."""
        return "GTiff" if self._loader == "tiff" else self._loader.upper()

    def rows(self, bands: list[int], top: int, bottom: int, left: int, right: int) -> Iterator[np.ndarray]:
        """Bands (from 0) of the rows top ... bottom - 1 of the columns left ... right - 1, as [rows, columns, bands] of any
        heights.

        Raises:
            UserError: broken or cut off data.
        """
        region = pyvips.Region.new(self._open())
        for first in range(0, bottom, 256):  # those above are decoded too
            rows = min(256, bottom - first)
            with self._clear("broken image data"):
                pixels = region.fetch(0, first, self.frame.width, rows)
            if first + rows > top:
                strip = np.frombuffer(pixels, self.samples.dtype).reshape(rows, self.frame.width, -1)
                strip = strip[max(top - first, 0) :, left:right]
                yield strip if bands == list(range(strip.shape[2])) else strip[..., bands]

    def _open(self) -> pyvips.Image:
        # inside TIFFs libvips takes any odd tag for a failure; what libjpeg says there is heard instead
        options: dict[str, Any] = {"access": "sequential", "fail_on": "error" if self._loader == "tiff" else "warning"}
        if self._loader == "tiff" and getattr(self, "frame", None):  # one strip or tile may be the whole image
            options["unlimited"] = self.frame.width * self.frame.height <= MAX_WHOLE_PIXELS
        with self._clear("not a readable image"):
            if self._clean is not None:
                return pyvips.Operation.call("jpegload_buffer", self._clean, **options)
            return pyvips.Operation.call(f"{self._loader}load", str(self.path), **options)

    @contextlib.contextmanager
    def _clear(self, what: str) -> Iterator[None]:
        """Turns libvips' complaints of several lines into one."""
        try:
            with heard(self.path, OF_JPEG if self._loader == "tiff" else None):
                yield
        except WrongPixels as error:
            raise BrokenImage(f"{self.path}: {what} ({error})") from None
        except pyvips.Error as error:
            said = "; ".join(dict.fromkeys(line for line in error.detail.splitlines() if line)) or error.message
            raise BrokenImage(f"{self.path}: {what} ({said})") from None


def frame_of(picture: bytes) -> Frame:
    """The size of a picture in memory, of whatever form that libvips reads here; by its header alone.

    Raises:
        BrokenImage: it is none.
    """
    try:
        header = pyvips.Image.new_from_buffer(picture, "", access="sequential")
    except pyvips.Error as error:
        raise BrokenImage(f"not a readable image ({(error.detail or error.message).splitlines()[0]})") from None
    return Frame(header.width, header.height)


def without_junk(path: Path) -> bytes | None:
    """A JPEG without the bytes between its segments that belong to none, which readers skip; None if it has no such bytes.

    Those of the first scan's header are looked at: what follows is pixels.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place, kept, clean = 2, 0, []
        while place + 4 <= len(data):
            mark = place
            while mark + 1 < len(data) and not (data[mark] == 0xFF and data[mark + 1] not in (0x00, 0xFF)):
                mark += 1
            if set(data[place:mark]) - {0xFF}:  # only 0xFF may fill the gap
                clean.append(data[kept:place])
                kept = mark
            kind = data[mark + 1] if mark + 1 < len(data) else 0xD9
            if kind in (0xD9, 0xDA):  # end, or start of pixels
                break
            alone = kind == 0x01 or 0xD0 <= kind <= 0xD8
            place = mark + 2 + (0 if alone else int.from_bytes(data[mark + 2 : mark + 4], "big"))
        if not clean:
            return None
        warn(path, "Corrupt JPEG data: bytes between its segments that belong to none")
        return b"".join([*clean, data[kept:]])
