"""Images as they are given from Python: paths, arrays, pictures of Pillow's, and files with settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from zoomearth_jax.configs.images import MAX_PIXELS, ImageConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.georeference import Georeference, georeference_of
from zoomearth_jax.data_pipeline.images.image_folder import open_image
from zoomearth_jax.data_pipeline.images.sources import ArrayImage, ImageSource
from zoomearth_jax.errors import UserError


class Image:
    """An image file, or an image of a tile store, with the settings by which it becomes 8-bit RGB."""

    def __init__(
        self,
        path: str | Path,
        bands: tuple[int, int, int] | None = None,
        stretch: tuple[float | str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ):
        """Reads the header only.

        Args:
            path: an image file; or an image of a tile store, as STORE/NAME, or as STORE if it holds one image.
            bands: the numbers, from 1, of the bands that are red, green and blue.
            stretch: what becomes 0 and 255 where pixels aren't 8-bit: (0, 3000), ("2%", "98%") or ("min", "max").
            max_pixels: a file of more is refused.

        Raises:
            UserError: no such file, one that can't be read, or settings that don't fit.
        """
        bands = None if bands is None else _tuple("bands", bands)
        self.path, self.config = Path(path), ImageConfig(bands, _tuple("stretch", stretch), max_pixels)
        self._source = open_image(self.path, self.config)
        self.frame: Frame = self._source.frame

    @property
    def georeference(self) -> Georeference | None:
        """Where it lies on the earth; see `georeference_of`."""
        return georeference_of(self._source)

    def __repr__(self) -> str:
        return f"Image({str(self.path)!r}, {self.frame.width} x {self.frame.height} px)"

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """See `ImageSource.window`."""
        return self._source.window(box, size, exact)


def _tuple(name: str, value) -> tuple:
    if not isinstance(value, list | tuple):
        raise UserError(f"{name}: {value!r}; give a tuple, such as (4, 3, 2) for bands or ('2%', '98%') for stretch")
    return tuple(value)


def as_source(image: Any) -> ImageSource:
    """What is given as an image, to be looked at.

    Args:
        image: a path (see `Image`), an array (see `ArrayImage`), a picture of Pillow's, or what is an image source already.

    Raises:
        UserError: anything else, or what can't be read.
    """
    if isinstance(image, str | os.PathLike):
        return open_image(image)
    if isinstance(image, PIL.Image.Image):
        return ArrayImage(image)
    if isinstance(getattr(image, "frame", None), Frame) and callable(getattr(image, "window", None)):
        return image
    if hasattr(image, "__array__"):
        return ArrayImage(image)
    raise UserError(
        f"image: a {type(image).__name__}; give a path, an array uint8 [height, width, 3], or a picture of Pillow's"
    )
