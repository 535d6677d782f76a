"""Image files from top to bottom in bounded memory: uint8 RGB strips, or one line that says why not.

The only reader of image files. libvips streams what Pillow decodes whole (4 bytes a pixel: 1.6 GB at 20,000 x 20,000); the
pixels are Pillow's, bit for bit (a test). What is stored is what is read: alpha is dropped, rotation marks (EXIF), colour
profiles and nodata values are left alone, because boxes refer to stored pixels.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyvips
from PIL import Image

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.boxes import Frame
from zoomearth_jax.errors import UserError

MAX_SIDE = 100_000  # a strip of 256 rows is then 77 MB
MAX_WHOLE_PIXELS = 100_000_000  # of files that can only be decoded whole: 0.4 GB

_LOADERS = {
    "Tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "Png": (b"\x89PNG\r\n\x1a\n",),
    "Jpeg": (b"\xff\xd8\xff",),
    "Webp": (b"RIFF",),
}
_DTYPES = {
    "uchar": "u1",
    "char": "i1",
    "ushort": "u2",
    "short": "i2",
    "uint": "u4",
    "int": "i4",
    "float": "f4",
    "double": "f8",
}

# Everything but the four loaders stays shut, whatever a file claims to be.
pyvips.operation_block_set("VipsForeignLoad", True)
for _name in _LOADERS:
    pyvips.operation_block_set(f"VipsForeignLoad{_name}", False)
pyvips.cache_set_max(0)  # files may change
pyvips.concurrency_set(1)  # callers have threads of their own
logging.getLogger("pyvips").setLevel(logging.ERROR)  # odd tags are no news


class ImageFile:
    """A TIFF, PNG, JPEG or WebP; its content decides which, not its name."""

    def __init__(self, path, config: ImageConfig = ImageConfig()):
        """Reads the header only.

        Raises:
            UserError: missing, unreadable, too large, or of a pixel type that `config` doesn't turn into 8-bit RGB.
        """
        self.path, self.config = Path(path), config
        self._loader = _loader(self.path)
        header = self._open()
        self.frame = Frame(header.width, header.height)
        self._bands, self._dtype = header.bands, _DTYPES.get(header.format)
        self._inks = header.interpretation == "cmyk"
        self._whole = self._loader == "webpload" or bool(_field(header, "interlaced"))
        self._check_size()
        self._check_pixels(header.format)

    def strips(self, height: int) -> Iterator[np.ndarray]:
        """The pixels from top to bottom: uint8 [height, width, 3], the last one perhaps lower.

        Raises:
            UserError: broken or cut off data, at the strip where it is noticed.
        """
        try:
            strips = self._stream(height)
            first = next(strips)
        except _UnknownCodec as error:
            strips = self._through_rasterio(height, str(error))
            first = next(strips)
        for strip in itertools.chain([first], strips):
            yield self._rgb(strip)

    def _stream(self, height: int) -> Iterator[np.ndarray]:
        region = pyvips.Region.new(self._open())
        width, total = self.frame.width, self.frame.height
        for top in range(0, total, height):
            rows = min(height, total - top)
            with self._clear("broken image data"):
                pixels = region.fetch(0, top, width, rows)
            yield np.frombuffer(pixels, self._dtype).reshape(rows, width, self._bands)

    def _open(self) -> pyvips.Image:
        options = {"access": "sequential", "fail_on": "warning"}
        if self._loader == "tiffload" and getattr(self, "frame", None):  # one strip or tile may be the whole image
            options["unlimited"] = self.frame.width * self.frame.height <= MAX_WHOLE_PIXELS
        with self._clear("not a readable image"):
            return pyvips.Operation.call(self._loader, str(self.path), **options)

    @contextlib.contextmanager
    def _clear(self, what: str) -> Iterator[None]:
        """Turns libvips' complaints of several lines into one."""
        try:
            yield
        except pyvips.Error as error:
            said = "; ".join(dict.fromkeys(line for line in error.detail.splitlines() if line)) or error.message
            if "not configured" in said:
                raise _UnknownCodec(said) from None
            if "beyond the" in said:
                said = "its strips are too large to be read one by one; write it with smaller strips or tiles"
            raise UserError(f"{self.path}: {what} ({said})") from None
        except UnicodeEncodeError:
            raise UserError(f"{self.path}: the name is not valid UTF-8; rename the file") from None

    def _check_size(self) -> None:
        width, height = self.frame.width, self.frame.height
        if width * height > self.config.max_pixels:
            raise UserError(f"{self.path}: {width} x {height} px is over the limit of {self.config.max_pixels:,} px")
        if max(width, height) > MAX_SIDE:
            raise UserError(f"{self.path}: {width} x {height} px is over the limit of {MAX_SIDE:,} px a side")
        if self._whole and width * height > MAX_WHOLE_PIXELS:
            raise UserError(
                f"{self.path}: {width} x {height} px of WebP, interlaced PNG or progressive JPEG can only be decoded whole, "
                f"which is limited to {MAX_WHOLE_PIXELS:,} px; convert it to TIFF"
            )

    def _check_pixels(self, kind: str) -> None:
        bands, stretch = self.config.bands, self.config.values
        if self._dtype is None or (self._dtype != "u1" and stretch is None):
            hint = "" if self._dtype is None else ", or give a stretch: the values that become 0 and 255"
            raise UserError(f"{self.path}: pixel type {kind!r} is not supported; convert the image to 8-bit RGB{hint}")
        if bands is None and self._bands > 4:
            raise UserError(f"{self.path}: {self._bands} bands; choose the three that are red, green and blue")
        if bands is not None and max(bands) > self._bands:
            raise UserError(f"{self.path}: has {self._bands} bands, so there is no band {max(bands)}")

    def _rgb(self, pixels: np.ndarray) -> np.ndarray:
        """[h, w, bands] of the file's type -> uint8 [h, w, 3]."""
        bands = self.config.bands
        if bands is not None:
            pixels = pixels[..., [band - 1 for band in bands]]
        elif self._inks and self._bands == 4:
            pixels = np.asarray(Image.frombuffer("CMYK", pixels.shape[1::-1], pixels.tobytes()).convert("RGB"))
        else:
            pixels = pixels[..., :3] if self._bands >= 3 else np.broadcast_to(pixels[..., :1], (*pixels.shape[:2], 3))
        if pixels.dtype != np.uint8:
            low, high = self.config.values
            scaled = (pixels.astype(np.float32) - low) * (255 / (high - low))
            pixels = np.nan_to_num(scaled, posinf=255, neginf=0).round().clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(pixels)

    def _through_rasterio(self, height: int, why: str) -> Iterator[np.ndarray]:
        """As `_stream`, for TIFF codecs that libvips' wheels lack."""
        try:
            import rasterio
        except ImportError:
            raise UserError(f"{self.path}: {why}; `pip install 'zoomearth_jax[geo]'` reads it") from None
        width, total = self.frame.width, self.frame.height
        try:
            with rasterio.Env(GDAL_CACHEMAX=64), rasterio.open(self.path, driver="GTiff") as file:
                for top in range(0, total, height):
                    rows = min(height, total - top)
                    yield file.read(window=rasterio.windows.Window(0, top, width, rows)).transpose(1, 2, 0)
        except rasterio.errors.RasterioError as error:
            said = " ".join(str(error.__cause__ or error).split())
            raise UserError(f"{self.path}: broken image data ({said})") from None


class _UnknownCodec(Exception):
    """A compression that this build of libvips can't undo."""


def _loader(path: Path) -> str:
    """Name of libvips' loader for a file's first bytes."""
    if not path.is_file():
        raise UserError(f"{path}: no such image file")
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise UserError(f"{path}: not a readable image ({error.strerror})") from None
    if not head:
        raise UserError(f"{path}: not a readable image (the file is empty)")
    for name, starts in _LOADERS.items():
        if head.startswith(starts) and (name != "Webp" or head[8:] == b"WEBP"):
            return f"{name.lower()}load"
    raise UserError(f"{path}: not a readable image (neither TIFF, PNG, JPEG nor WebP)")


def _field(header: pyvips.Image, name: str):
    return header.get(name) if header.get_typeof(name) else None
