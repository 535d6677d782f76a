"""Images by the same two calls, whatever is behind them: `global_view` and `window`."""

from __future__ import annotations

import functools
import threading
import warnings
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoomearth_jax.data_pipeline.boxes import Box, Frame, view_size
from zoomearth_jax.errors import UserError

MAX_PIXELS = 500_000_000  # checked against the header before anything is decoded
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"}  # 8 bits a channel; others lose data silently


class ImageSource(Protocol):
    """An image too large to look at whole."""

    frame: Frame

    def window(self, box: Box, size: Frame) -> np.ndarray:
        """The window `box` (in px of `frame`) resized to `size`: uint8 [size.height, size.width, 3]."""


class RawImage:
    """A plain image file, decoded whole when first looked at; the last two decoded images are kept."""

    def __init__(self, path):
        """Reads the header only.

        Raises:
            UserError: missing, unreadable, over MAX_PIXELS, or of a pixel type that Pillow would silently ruin
                (16-bit, float).
        """
        self.path = Path(path)
        with self._open() as image:
            self.frame = Frame(*image.size)
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: {image.width} x {image.height} px is over the limit of {MAX_PIXELS:,} px")
            if image.mode not in _MODES:
                raise UserError(f"{path}: pixel type {image.mode!r} is not supported; convert the image to 8-bit RGB")

    def _open(self) -> Image.Image:
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such image file")
        try:
            with warnings.catch_warnings():  # our own limit is checked from the header
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                return Image.open(self.path)
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
            raise UserError(f"{self.path}: not a readable image ({error})") from None

    def window(self, box: Box, size: Frame) -> np.ndarray:
        """See `ImageSource.window`; Pillow's antialiased bicubic filter, as HF's slow image processor uses."""
        with _DECODING:  # threads that want the same file wait for one decoding of it
            pixels = _decode(self)
        resized = pixels.resize((size.width, size.height), Image.Resampling.BICUBIC, box=box.corners)
        return np.asarray(resized)


_DECODING = threading.Lock()


@functools.lru_cache(maxsize=2)  # a 20,000 px image is 1.2 GB
def _decode(image: RawImage) -> Image.Image:
    with image._open() as file:
        try:
            return file.convert("RGB")
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise UserError(f"{image.path}: broken image data ({error})") from None


def whole(source: ImageSource) -> Box:
    """The box of the entire image."""
    return Box(0, 0, source.frame.width, source.frame.height, source.frame)


def global_view(source: ImageSource, view_px: int, unit: int) -> np.ndarray:
    """The overview: the whole image at most `view_px` on its longer side, uint8 [h, w, 3]."""
    return view_of(source, whole(source), view_px, unit)


def view_of(source: ImageSource, box: Box, view_px: int, unit: int) -> np.ndarray:
    """A window as the model sees it: at most `view_px` on its longer side, sides multiples of `unit`."""
    return source.window(box, view_size(box.x2 - box.x1, box.y2 - box.y1, view_px, unit))
