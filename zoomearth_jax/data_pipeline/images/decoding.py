"""Image files from top to bottom in bounded memory: uint8 RGB strips, or one line that says why not.

The only reader of image files. GDAL reads TIFF and what else remote sensing uses; libvips reads PNG, JPEG, WebP and JPEG in
TIFF, Pillow's pixels bit for bit (a test). What samples mean is decided in one place, `samples`. What is stored is what is
read: alpha is dropped, rotation marks (EXIF), colour profiles and nodata values are left alone, because boxes refer to
stored pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zoomearth_jax.configs.images import LEAST_TO_LARGEST, ImageConfig
from zoomearth_jax.data_pipeline.images.georeference import Georeference, read_georeference
from zoomearth_jax.data_pipeline.images.rasters import Raster
from zoomearth_jax.data_pipeline.images.samples import Samples
from zoomearth_jax.data_pipeline.images.streams import MAX_WHOLE_PIXELS, Stream
from zoomearth_jax.data_pipeline.images.tiff_tags import YCBCR, read_tags
from zoomearth_jax.data_pipeline.images.vrt import is_vrt, local_sources
from zoomearth_jax.errors import BrokenImage, UserError

MAX_SIDE = 100_000  # px; a strip of 256 rows is then 77 MB
SUFFIXES = frozenset(
    (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp", ".jp2", ".j2k", ".jpx", ".vrt", ".img", ".ntf", ".nitf")
)  # of files that folders are searched for; what a file is its first bytes say
_STARTS = {
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "png": (b"\x89PNG\r\n\x1a\n",),
    "jpeg": (b"\xff\xd8\xff",),
    "webp": (b"RIFF",),
    "JP2OpenJPEG": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "HFA": (b"EHFA_HEADER_TAG",),
    "NITF": (b"NITF0", b"NSIF0"),
}
_SAMPLE_PIXELS = 4_000_000  # on a regular grid, of which percentiles are taken


class ImageFile:
    """An image file; its content decides how it is read, not its name."""

    def __init__(self, path, config: ImageConfig = ImageConfig()):
        """Reads the header only.

        Raises:
            UserError: missing, unreadable, too large, or of a pixel type that `config` doesn't turn into 8-bit RGB.
        """
        self.path, self.config = Path(path), config
        self._reader = _reader(self.path)
        self.frame = self._reader.frame
        self._check_size()
        self._check_samples(self._reader.samples)

    @functools.cached_property
    def georeference(self) -> Georeference | None:
        """Where the image lies on the earth; None where nothing says it.

        Raises:
            UserError: see `read_georeference`.
        """
        return read_georeference(self.path, self._reader.driver)

    def strips(
        self, height: int, top: int = 0, bottom: int | None = None, left: int = 0, right: int | None = None
    ) -> Iterator[np.ndarray]:
        """The pixels from top to bottom: uint8 [height, width, 3], the last one perhaps lower.

        Args:
            top, bottom: the rows top ... bottom - 1 only; all without them.
            left, right: the columns left ... right - 1 only.

        Raises:
            UserError: broken or cut off data, at the strip where it is noticed.
        """
        samples, bands = self._reader.samples, self.config.bands
        stretch = self._range() if samples.needs_stretch else None
        bottom = self.frame.height if bottom is None else bottom
        right = self.frame.width if right is None else right
        rows = self._reader.rows(samples.wanted(bands), top, bottom, left, right)
        for strip in _of_height(rows, height):
            yield samples.to_rgb(strip, bands is not None, stretch)

    def _check_size(self) -> None:
        width, height = self.frame.width, self.frame.height
        if width * height > self.config.max_pixels:
            raise UserError(
                f"{self.path}: {width} x {height} px is over the limit of {self.config.max_pixels:,} px; "
                f"--max-pixels {width * height} allows it"
            )
        if max(width, height) > MAX_SIDE:
            raise UserError(f"{self.path}: {width} x {height} px is over the limit of {MAX_SIDE:,} px a side")
        if getattr(self._reader, "whole", False) and width * height > MAX_WHOLE_PIXELS:
            raise UserError(
                f"{self.path}: {width} x {height} px of WebP, interlaced PNG or progressive JPEG can only be decoded whole, "
                f"which is limited to {MAX_WHOLE_PIXELS:,} px; `gdal_translate {self.path} OUT.tif` converts it to TIFF"
            )

    def _check_samples(self, samples: Samples) -> None:
        bands = self.config.bands
        if bands is not None and max(bands) > samples.count:
            raise UserError(f"{self.path}: has {samples.count} bands, so there is no band {max(bands)}")
        if bands is None and samples.count > 4:
            raise UserError(
                f"{self.path}: {samples.count} bands; choose the three that are red, green and blue: --bands R G B, by number"
            )
        if bands is None and not samples.known:
            raise UserError(
                f"{self.path}: {samples.kind} is not turned into colours; choose three bands to be taken as they are stored "
                "(--bands R G B), or convert the image to RGB"
            )
        if samples.dtype == "mixed" or samples.dtype.startswith("complex"):
            raise UserError(
                f"{self.path}: pixel type {samples.dtype} is not supported; `gdal_translate -ot Float32 {self.path} OUT.tif` "
                "converts it"
            )
        if samples.needs_stretch and not self.config.stretch:
            raise UserError(
                f"{self.path}: pixel type {samples.dtype} needs a stretch, the values that become 0 and 255: --stretch LOW HIGH, "
                "--stretch 2% 98% or --stretch min max"
            )

    def _range(self) -> tuple[float, float]:
        """The values that become 0 and 255."""
        if self.config.values:
            return self.config.values
        stat = self.path.stat()
        return _found_range(self.path, self.config, (stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=4096)
def _found_range(path: Path, config: ImageConfig, version: tuple) -> tuple[float, float]:
    """The range that percentiles, or least and largest values, give, of the pixels that have data; `version` makes a changed file
    another."""
    image = ImageFile(path, config)
    samples, frame = image._reader.samples, image.frame
    if config.stretch == LEAST_TO_LARGEST and samples.statistics and config.bands is None:
        low, high = samples.statistics
    else:
        step = 1 if config.percentiles is None else max(1, int((frame.width * frame.height / _SAMPLE_PIXELS) ** 0.5))
        parts, top = [], 0
        for rows in image._reader.rows(samples.wanted(config.bands), 0, frame.height, 0, frame.width):
            values = rows[-top % step :: step, ::step]
            values = (
                values[np.isfinite(values) & (values != samples.nodata)]
                if samples.nodata is not None
                else (values[np.isfinite(values)])
            )
            top += len(rows)
            parts.append(
                values if config.percentiles else values[[values.argmin(), values.argmax()]] if values.size else values
            )
        values = np.concatenate(parts)
        if not values.size:
            return 0.0, 1.0  # no pixel has data
        low, high = map(float, np.percentile(values, config.percentiles or (0, 100)))
    return (low, high) if low < high else (low, low + 1.0)


def _of_height(parts: Iterator[np.ndarray], height: int) -> Iterator[np.ndarray]:
    """Rows in parts of any height, again in parts of `height`."""
    waiting: list[np.ndarray] = []
    for part in parts:
        waiting.append(part)
        while sum(map(len, waiting)) >= height:
            joined = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
            yield joined[:height]
            waiting = [joined[height:]] if len(joined) > height else []
    if waiting:
        yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting)


def kind_of(head: bytes) -> str | None:
    """What a file is by its first bytes: `tiff`, `png`, `jpeg`, `webp`, or GDAL's name of its form; None of files without a mark of
    their own, such as virtual rasters and ENVI's pixels."""
    kind = next((k for k, starts in _STARTS.items() if head.startswith(starts)), None)
    return None if kind == "webp" and head[8:12] != b"WEBP" else kind


def _reader(path: Path) -> Raster | Stream:
    """The reader of a file, by its first bytes.

    Raises:
        UserError: missing, empty, or of a form that isn't read.
    """
    head = _head(path)
    kind = kind_of(head)
    if kind == "tiff":
        return _tiff_reader(path)
    if kind in ("png", "jpeg", "webp"):
        return Stream(path, kind)
    if kind:
        return Raster(path, kind)
    if is_vrt(head):
        _check_vrt(path)
        return Raster(path, "VRT")
    if _envi_header(path):
        return Raster(path, "ENVI")
    if path.suffix.lower() == ".hdr" and head.startswith(b"ENVI"):
        raise UserError(f"{path}: is the header of an ENVI file; give the file with the pixels, of the same name")
    raise BrokenImage(
        f"{path}: not a readable image (neither TIFF, PNG, JPEG, WebP, JPEG 2000, VRT, ENVI, ERDAS nor NITF); "
        f"`gdal_translate {path} OUT.tif` may convert it"
    )


def _tiff_reader(path: Path) -> Raster | Stream:
    """The reader of a TIFF: libvips for JPEG in YCbCr, where it upsamples colours as Pillow does; GDAL for everything else, and
    what it refuses."""
    tags = read_tags(path)
    if tags.photometric == YCBCR and tags.jpeg and tags.samples == 3 and not (tags.separate or tags.sparse):
        try:
            return Stream(path, "tiff")
        except UserError:
            pass
    return Raster(path, "GTiff", tags)


def _check_vrt(path: Path, depth: int = 0) -> None:
    """Refuses a virtual raster whose sources, and theirs, aren't all local image files."""
    if depth == 4:
        raise UserError(f"{path}: virtual rasters inside each other are read four deep")
    for source in local_sources(path):
        if is_vrt(_head(source)):
            _check_vrt(source, depth + 1)
        else:
            _reader(source)


def _envi_header(path: Path) -> Path | None:
    """The header of an ENVI file's pixels: NAME.hdr, or the name with .hdr in place of its ending; None if there is none."""
    for header in (path.with_name(path.name + ".hdr"), path.with_suffix(".hdr")):
        if header != path and header.is_file():
            with header.open("rb") as file:
                if file.read(4) == b"ENVI":
                    return header
    return None


def _head(path: Path) -> bytes:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: the name is not valid UTF-8; rename the file") from None
    if not path.is_file():
        raise UserError(f"{path}: no such image file")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise BrokenImage(f"{path}: not a readable image ({error.strerror})") from None
    if not head:
        raise BrokenImage(f"{path}: not a readable image (the file is empty)")
    return head
