"""Raster files through GDAL (rasterio): GeoTIFF and what else remote sensing uses, from top to bottom in bounded memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.data_pipeline.images.complaints import ANYTHING, WrongPixels, heard
from zoomearth_jax.data_pipeline.images.samples import Samples
from zoomearth_jax.data_pipeline.images.tiff_tags import KINDS, NAMES, TiffTags
from zoomearth_jax.errors import BrokenImage, UserError

MAX_BLOCK_BYTES = 400_000_000  # of a strip or tile, which is decoded whole
_PIECE_BYTES = 32_000_000  # read at a time; GDAL's cache holds the strips or tiles of it
SETTINGS = {
    "GDAL_CACHEMAX": 128,  # MB
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "/nothing",  # the network stays shut, whatever a file names
    "GDAL_HTTP_MAX_RETRY": "0",
}
_CONVERTED = {
    ColorInterp.Y,
    ColorInterp.Cb,
    ColorInterp.Cr,
    ColorInterp.hue,
    ColorInterp.lightness,
    ColorInterp.saturation,
}
_INKS = (ColorInterp.cyan, ColorInterp.magenta, ColorInterp.yellow, ColorInterp.black)

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # plain TIFFs are no news


class Raster:
    """A file that GDAL reads."""

    def __init__(self, path: Path, driver: str, tags: TiffTags | None = None):
        """Reads the header only.

        Args:
            driver: GDAL's driver, the only one that may read the file; kept as `driver`.
            tags: the tags of a TIFF.

        Raises:
            UserError: unreadable, or with strips that are too large.
        """
        self.path, self.driver = path, driver
        # as stored: GDAL's own conversion of inks rounds in another way than Pillow's
        self._raw = tags is not None and KINDS.get(tags.photometric) == "cmyk"
        with self._open(opening=True) as file:
            if not file.count:
                raise UserError(f"{path}: holds no raster of its own; `gdalinfo {path}` lists what it holds")
            self.frame = Frame(file.width, file.height)
            self._block = file.block_shapes[0]
            self.samples = _samples(file, tags)
            self._check_length(file)
        block = self._block[0] * self._block[1] * np.dtype(self.samples.dtype).itemsize
        if block * (1 if tags is None or tags.separate else self.samples.count) > MAX_BLOCK_BYTES:
            raise UserError(
                f"{path}: its strips or tiles are too large to be read one by one; "
                f"`gdal_translate -co TILED=YES {path} OUT.tif` writes smaller ones"
            )

    def _check_length(self, file) -> None:
        """Checks the length of ENVI's pixels, which have no marks: GDAL reads zeros behind the end of a file that is cut off."""
        facts = {key.lower().replace(" ", "_"): value for key, value in file.tags(ns="ENVI").items()}
        if self.driver != "ENVI" or facts.get("file_compression", "0").strip() not in ("", "0"):
            return
        offset = facts.get("header_offset", "0").strip()
        size = sum(np.dtype(dtype).itemsize for dtype in file.dtypes) * file.width * file.height
        size += int(offset) if offset.isdigit() else 0
        if (found := self.path.stat().st_size) < size:
            raise BrokenImage(f"{self.path}: broken image data (cut off: {found:,} of {size:,} bytes)")

    def rows(self, bands: list[int], top: int, bottom: int, left: int, right: int) -> Iterator[np.ndarray]:
        """Bands (from 0) of the rows top ... bottom - 1 of the columns left ... right - 1, as [rows, columns, bands] of any
        heights.

        Raises:
            UserError: broken or cut off data.
        """
        tall, wide = self._block
        step = max(256 // tall, 1) * tall
        with self._open() as file:
            row_bytes = min(step, self.frame.height) * len(bands) * np.dtype(self.samples.dtype).itemsize
            columns = max(_PIECE_BYTES // row_bytes // wide, 1) * wide
            while top < bottom:
                stop = min(bottom, (top // step + 1) * step)
                out = np.empty((len(bands), stop - top, right - left), self.samples.dtype)
                for start in range(left, right, columns):
                    part = out[:, :, start - left : start - left + columns]
                    window = Window(start, top, part.shape[2], stop - top)
                    with self._clear():
                        part[...] = file.read([band + 1 for band in bands], window=window)
                yield out.transpose(1, 2, 0)
                top = stop

    @contextmanager
    def _open(self, opening: bool = False):
        """The open dataset."""
        name = str(self.path.absolute())
        with self._clear(opening=True):
            file = rasterio.open(f"GTIFF_RAW:{name}" if self._raw else name, driver=self.driver, sharing=False)
        with file:
            if not opening:
                yield file
                return
            with self._clear(opening=True):
                yield file

    @contextmanager
    def _clear(self, opening: bool = False):
        """Turns what GDAL says into one line, and is quiet about what is harmless."""
        what = "not a readable image" if opening else "broken image data"
        try:
            with rasterio.Env(**SETTINGS), heard(self.path, None if opening else ANYTHING):
                yield
        except WrongPixels as error:
            raise BrokenImage(f"{self.path}: {what} ({error})") from None
        except (RasterioError, ValueError, MemoryError) as error:
            said = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
            raise BrokenImage(f"{self.path}: {what} ({said})") from None


def _samples(file, tags: TiffTags | None) -> Samples:
    structure = file.tags(1, ns="IMAGE_STRUCTURE")
    kind, inverted, alpha, palette = _of_tiff(file, tags) if tags else _of_raster(file)
    dtype = file.dtypes[0] if len(set(file.dtypes)) == 1 else "mixed"
    return Samples(
        count=file.count,
        dtype=dtype,
        bits=min(int(structure.get("NBITS", 8)), 8),
        kind=kind,
        inverted=inverted,
        alpha=alpha,
        palette=palette,
        nodata=file.nodatavals[0],
        statistics=_statistics(file),
    )


def _of_tiff(file, tags: TiffTags):
    """What a TIFF's tags say: kind, whether white is zero, band of a premultiplied alpha, and palette."""
    kind = KINDS.get(tags.photometric) or NAMES.get(tags.photometric, f"photometric {tags.photometric}")
    if kind == "grey" and file.count >= 3:  # GDAL's and others' way of writing colours without saying so
        kind = "rgb" if tags.photometric else "several bands in which white is zero"
    if kind == "rgb" and file.count < 3:
        kind = "grey"
    if kind == "palette" and (tags.palette is None or file.count - len(tags.extra) != 1):
        kind = "a palette without colours"
    if kind == "cmyk" and (not tags.cmyk or file.count < 4):
        kind = "inks other than cyan, magenta, yellow and black"
    if tags.photometric in (6, 8) and ColorInterp.red not in file.colorinterp:  # GDAL converts only 8-bit ones
        kind = {6: "YCbCr", 8: "CIE Lab"}[tags.photometric] + f" of {file.dtypes[0]}"
    alpha = {"grey": 1, "rgb": 3}.get(kind)
    multiplied = alpha is not None and tags.premultiplied == alpha
    return kind, tags.photometric == 0, alpha if multiplied else None, tags.palette


def _of_raster(file):
    """What `_of_tiff` gives, by what GDAL says of the bands."""
    odd = next((band for band in file.colorinterp if band in _CONVERTED), None)
    if odd:
        return f"colours as {odd.name}", False, None, None
    if file.colorinterp[0] == ColorInterp.palette:
        colours = file.colormap(1)
        palette = np.zeros((max(colours) + 1, 3), np.uint8)
        for value, colour in colours.items():
            palette[value] = colour[:3]
        return "palette", False, None, palette
    if file.colorinterp[:4] == _INKS:
        return "cmyk", False, None, None
    return "rgb" if file.count >= 3 else "grey", False, None, None


def _statistics(file) -> tuple[float, float] | None:
    """The least and the largest value of all bands together."""
    tags = [file.tags(band) for band in file.indexes[:4]]
    try:
        ends = [(float(t["STATISTICS_MINIMUM"]), float(t["STATISTICS_MAXIMUM"])) for t in tags]
    except (KeyError, ValueError):
        return None
    return min(low for low, _ in ends), max(high for _, high in ends)
