"""Where verbs write pictures."""

from __future__ import annotations

import os
from pathlib import Path

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
    if os.path.realpath(path) == os.path.realpath(expanded(image)):
        raise UserError(f"{path}: {flag} would overwrite the image itself; use another name")
    return path
