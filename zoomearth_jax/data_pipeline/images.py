"""Images by the same two calls, whatever is behind them: `global_view` and `window`."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from zoomearth_jax.data_pipeline.boxes import Box, Frame, view_size
from zoomearth_jax.data_pipeline.decoding import ImageFile


class ImageSource(Protocol):
    """An image too large to look at whole."""

    frame: Frame

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """The window `box` (in px of `frame`) resized to `size`: uint8 [size.height, size.width, 3].

        Args:
            exact: computed from the full resolution, however large the window. Sources that hold coarser levels
                otherwise take those for large windows; the others are always exact.
        """


class RawImage:
    """A plain image file, decoded whole when first looked at; the last two decoded images are kept."""

    def __init__(self, path):
        """Reads the header only.

        Raises:
            UserError: see `ImageFile`.
        """
        self.path = Path(path)
        self.frame = ImageFile(self.path).frame

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """See `ImageSource.window`; Pillow's antialiased bicubic filter, as HF's slow image processor uses."""
        with _DECODING:  # threads that want the same file wait for one decoding of it
            pixels = _decode(self)
        resized = pixels.resize((size.width, size.height), Image.Resampling.BICUBIC, box=box.corners)
        return np.asarray(resized)


_DECODING = threading.Lock()


@functools.lru_cache(maxsize=2)  # a 20,000 px image is 1.6 GB
def _decode(image: RawImage) -> Image.Image:
    pixels, top = Image.new("RGB", (image.frame.width, image.frame.height)), 0
    for strip in ImageFile(image.path).strips(256):
        pixels.paste(Image.fromarray(strip), (0, top))
        top += len(strip)
    return pixels


def whole(source: ImageSource) -> Box:
    """The box of the entire image."""
    return Box(0, 0, source.frame.width, source.frame.height, source.frame)


def global_view(source: ImageSource, view_px: int, unit: int) -> np.ndarray:
    """The overview: the whole image at most `view_px` on its longer side, uint8 [h, w, 3]."""
    return view_of(source, whole(source), view_px, unit)


def view_of(source: ImageSource, box: Box, view_px: int, unit: int) -> np.ndarray:
    """A window as the model sees it: at most `view_px` on its longer side, sides multiples of `unit`."""
    return source.window(box, view_size(box.x2 - box.x1, box.y2 - box.y1, view_px, unit))
