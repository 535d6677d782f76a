"""Image sources: images by the same two calls, whatever is behind them: `global_view` and `window`."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageMode

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, view_size
from zoomearth_jax.data_pipeline.images.decoding import ImageFile
from zoomearth_jax.data_pipeline.images.georeference import Georeference, georeference_of
from zoomearth_jax.data_pipeline.images.picture_map import PictureMap
from zoomearth_jax.errors import BrokenImage, UserError


class ImageSource(Protocol):
    """An image too large to look at whole."""

    @property
    def frame(self) -> Frame:
        """Its size in px."""
        ...

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """The window `box` (in px of `frame`) resized to `size`: uint8 [size.height, size.width, 3].

        Args:
            exact: computed from the full resolution, however large the window. Sources that hold coarser levels
                otherwise take those for large windows; the others are always exact.
        """


class _Decoded:
    """A picture in memory."""

    def __init__(self, picture: Image.Image):
        """Keeps an RGB picture."""
        self._picture, self.frame = picture, Frame(picture.width, picture.height)

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """See `ImageSource.window`; always exact."""
        return resized(self._picture, box.corners, size)


class ArrayImage(_Decoded):
    """An image in memory, of an array or of Pillow. It is copied: later changes of what was given don't reach it."""

    def __init__(self, pixels: np.ndarray | Image.Image):
        """Makes 8-bit RGB of the pixels. Grey becomes three equal channels; alpha is dropped, as of files.

        Args:
            pixels: uint8 [h, w, 3] or [h, w], or a picture of Pillow's with 8 bits in each channel.

        Raises:
            UserError: another shape or type, no pixels, or a lazy picture whose file is broken.
        """
        super().__init__(_of_pillow(pixels) if isinstance(pixels, Image.Image) else _of_array(np.asarray(pixels)))


def _of_pillow(picture: Image.Image) -> Image.Image:
    if ImageMode.getmode(picture.mode).typestr not in ("|u1", "|b1"):
        raise UserError(
            f"image: Pillow's mode {picture.mode!r} has no 8-bit channels; scale it to 0 ... 255 and convert it to RGB"
        )
    if not picture.width or not picture.height:
        raise UserError(f"image: {picture.width} x {picture.height} px; give one with pixels")
    try:
        return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # Pillow decodes a file only now
        raise BrokenImage(f"image: broken image data ({error})") from None


def _of_array(pixels: np.ndarray) -> Image.Image:
    shape = pixels.shape
    if pixels.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        described = f"{pixels.dtype} {list(shape)}"
        raise UserError(f"image: an array of {described}; give uint8 [height, width, 3], or [height, width] for grey")
    if not pixels.size:
        raise UserError(f"image: {shape[1]} x {shape[0]} px; give one with pixels")
    picture = Image.fromarray(np.ascontiguousarray(pixels))  # a copy of RGB, but not of grey
    return picture if picture.mode == "RGB" else picture.convert("RGB")


class SideBySide:
    """Several images as one, from left to right, upper borders on one line; grey below the lower ones."""

    def __init__(self, images: Sequence[ImageSource]):
        """Takes at least one image."""
        self._images = tuple(images)
        self.frame = Frame(sum(i.frame.width for i in images), max(i.frame.height for i in images))

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """See `ImageSource.window`; each image's part is resized by itself."""
        x_scale, y_scale = size.width / (box.x2 - box.x1), size.height / (box.y2 - box.y1)
        picture, left = np.full((size.height, size.width, 3), 127, np.uint8), 0
        for image in self._images:
            x1, x2 = max(box.x1, left), min(box.x2, left + image.frame.width)
            y1, y2 = max(box.y1, 0), min(box.y2, image.frame.height)
            begin, end, low = (
                round(edge) for edge in ((x1 - box.x1) * x_scale, (x2 - box.x1) * x_scale, (y2 - box.y1) * y_scale)
            )
            if x1 < x2 and y1 < y2 and begin < end and low > 0:
                part = Box(x1 - left, y1, x2 - left, y2, image.frame)
                picture[:low, begin:end] = image.window(part, Frame(end - begin, low), exact)
            left += image.frame.width
        return picture


class Part:
    """A window of an image as an image of its own."""

    def __init__(self, image: ImageSource, window: Box):
        """Takes a window of whole px inside the image, in px of it."""
        self.image, self.corner = image, (window.x1, window.y1)
        self.frame = Frame(int(window.x2 - window.x1), int(window.y2 - window.y1))

    @property
    def georeference(self) -> Georeference | None:
        """Where the window lies on the earth."""
        where = georeference_of(self.image)
        return None if where is None else where.part(self.outside(whole(self)), self.frame)

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """See `ImageSource.window`. Pixels beyond the window's border count in the resizing, as anywhere in the image."""
        return self.image.window(self.outside(box), size, exact)

    def outside(self, box: Box) -> Box:
        """A box of this image in px of the whole."""
        x, y = self.corner
        return Box(box.x1 + x, box.y1 + y, box.x2 + x, box.y2 + y, self.image.frame)


class RawImage:
    """A plain image file. Up to KEPT_PIXELS it is decoded whole when first looked at, and the last two such images are kept;
    larger ones are read strip by strip each time, so that memory follows their width."""

    def __init__(self, path, config: ImageConfig = ImageConfig()):
        """Reads the header only.

        Raises:
            UserError: see `ImageFile`.
        """
        self.path, self.config = Path(path), config
        self.frame = ImageFile(self.path, config).frame

    @functools.cached_property
    def georeference(self) -> Georeference | None:
        """Where it lies on the earth, read when first asked for; see `ImageFile.georeference`."""
        return ImageFile(self.path, self.config).georeference

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """See `ImageSource.window`; always exact."""
        if self.frame.width * self.frame.height > KEPT_PIXELS:
            return self._streamed(box, size)
        with _DECODING:  # threads that want the same file wait for one decoding of it
            image = _decode(self)
        return image.window(box, size)

    def _streamed(self, box: Box, size: Frame) -> np.ndarray:
        """The window as `resized` gives it, its columns resized strip by strip."""
        x1, y1, x2, y2 = (float(np.float32(edge)) for edge in box.corners)
        top, bottom = span(y1, y2, size.height, self.frame.height)
        left, right = span(x1, x2, size.width, self.frame.width)
        strips = ImageFile(self.path, self.config).strips(256, top, bottom, left, right)
        narrow, filled = (
            Image.new("RGB", (size.width, bottom - top)),
            0,
        )  # made first: small parts keep the heap from shrinking
        for strip in strips:
            narrow.paste(columns_resized(Image.fromarray(strip), x1 - left, x2 - left, size.width), (0, filled))
            filled += len(strip)
        return rows_resized(narrow, y1 - top, y2 - top, size.height)


KEPT_PIXELS = 100_000_000  # 0.4 GB
_DECODING = threading.Lock()


@functools.lru_cache(maxsize=2)
def _decode(image: RawImage) -> _Decoded:
    pixels, top = Image.new("RGB", (image.frame.width, image.frame.height)), 0
    for strip in ImageFile(image.path, image.config).strips(256):
        pixels.paste(Image.fromarray(strip), (0, top))
        top += len(strip)
    return _Decoded(pixels)


def span(low: float, high: float, size: int, side: int) -> tuple[int, int]:
    """The px of one axis, of `side` px, that [low, high) resized to `size` px depends on.

    Pillow's bicubic filter reaches 2 px of the result, or of the original if it is enlarged, beyond the window.
    """
    reach = 2 * max(1.0, (high - low) / size) + 2
    return max(math.floor(low - reach), 0), min(math.ceil(high + reach), side)


def resized(pixels: Image.Image, corners: tuple[float, float, float, float], size: Frame) -> np.ndarray:
    """A window resized by Pillow's antialiased bicubic filter, as HF's slow image processor does: uint8 [h, w, 3].

    Columns are resized first, then rows, each rounded to uint8: that is `Image.resize` before Pillow 13, which takes the
    other order for some shapes of the whole picture. With the order fixed a window's pixels don't depend on the version,
    nor on how much of the image is at hand. Edges are float32, as in Pillow; so they can be shifted exactly.
    """
    x1, y1, x2, y2 = (float(np.float32(edge)) for edge in corners)
    top, bottom = span(y1, y2, size.height, pixels.height)
    part = columns_resized(pixels.crop((0, top, pixels.width, bottom)), x1, x2, size.width)
    return rows_resized(part, y1 - top, y2 - top, size.height)


def columns_resized(strip: Image.Image, x1: float, x2: float, width: int) -> Image.Image:
    """The first half of `resized`: columns [x1, x2) of any rows become `width` px."""
    left, right = span(x1, x2, width, strip.width)
    part = strip.crop((left, 0, right, strip.height))
    return part.resize((width, part.height), Image.Resampling.BICUBIC, box=(x1 - left, 0, x2 - left, part.height))


def rows_resized(part: Image.Image, y1: float, y2: float, height: int) -> np.ndarray:
    """The second half of `resized`: rows [y1, y2), of which all that count are there, become `height` px."""
    return np.asarray(part.resize((part.width, height), Image.Resampling.BICUBIC, box=(0, y1, part.width, y2)))


def whole(source: ImageSource) -> Box:
    """The box of the entire image."""
    return Box(0, 0, source.frame.width, source.frame.height, source.frame)


def mapped_view(source: ImageSource, shown: PictureMap) -> np.ndarray:
    """The picture of a map, uint8 [h, w, 3]: each piece of it read from the source at its own scale."""
    picture = np.empty((shown.frame.height, shown.frame.width, 3), np.uint8)
    for (top, bottom), (y1, y2) in shown.y.pieces():
        for (left, right), (x1, x2) in shown.x.pieces():
            part = Box(x1, y1, x2, y2, source.frame)
            picture[top:bottom, left:right] = source.window(part, Frame(right - left, bottom - top))
    return picture


def global_view(source: ImageSource, view_px: int, unit: int) -> np.ndarray:
    """The overview: the whole image at most `view_px` on its longer side, uint8 [h, w, 3]."""
    return view_of(source, whole(source), view_px, unit)


def view_of(source: ImageSource, box: Box, view_px: int, unit: int) -> np.ndarray:
    """A window as the model sees it: at most `view_px` on its longer side, sides multiples of `unit`."""
    return source.window(box, view_size(box.x2 - box.x1, box.y2 - box.y1, view_px, unit))
