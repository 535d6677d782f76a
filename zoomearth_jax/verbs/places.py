"""Where verbs write pictures."""

from __future__ import annotations

import os
from pathlib import Path

from zoomearth_jax.data_pipeline.images.regions import check_region, region_files
from zoomearth_jax.data_pipeline.images.tiles import expanded
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import check_writable


def png_place(flag: str, path: Path, image: Path) -> Path:
    """Where a PNG file goes.

    Args:
        flag: that names the place, for messages.
        image: what is read, which must not be overwritten.

    Raises:
        UserError: no PNG file can be written there, or it is the image itself.
    """
    path = expanded(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: {flag} writes PNG; use a name that ends in .png")
    check_writable(path)
    check_is_other(path, flag, image)
    return path


def region_place(flag: str, path: Path, image: Path) -> Path:
    """Where `write_region` puts a picture, with what belongs to it beside it; arguments and errors as of `png_place`."""
    path = expanded(path)
    check_region(path, flag)
    for file in region_files(path):
        check_is_other(file, flag, image)
    return path


def check_is_other(file: Path, flag: str, image: Path) -> None:
    """Refuses to overwrite the image that is read.

    Raises:
        UserError: the file is the image.
    """
    if os.path.realpath(file) == os.path.realpath(expanded(image)):
        raise UserError(f"{file}: {flag} would overwrite the image itself; use another name")
