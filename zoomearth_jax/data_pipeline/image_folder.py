"""The images that go with a folder of questions, by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from zoomearth_jax.data_pipeline.images import ImageSource, RawImage
from zoomearth_jax.errors import UserError

_PLACES = ("images", ".")  # subfolders of the folder, in this order


class ImageFolder:
    """Images of a folder: plain files in its subfolder images/ or in the folder itself."""

    def __init__(self, directory):
        """Opens nothing yet."""
        self.directory = Path(directory)

    def find(self, name: str) -> Path | None:
        """The file of an image; None if there is none.

        Raises:
            UserError: the name leads out of the folder.
        """
        root = self.directory.resolve()
        for place in _PLACES:
            path = self.directory / place / name
            if not path.resolve().is_relative_to(root):
                raise UserError(f"image {name!r} is not inside the folder {self.directory}")
            if path.is_file():
                return path
        return None

    def open(self, names: Iterable[str]) -> dict[str, ImageSource]:
        """Opens images by name.

        Raises:
            UserError: names that lead out of the folder, unreadable files, or missing ones: how many, and the first.
        """
        paths = {name: self.find(name) for name in dict.fromkeys(names)}
        missing = [name for name, path in paths.items() if path is None]
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise UserError(
                f"{self.directory}: {len(missing)} of {len(paths)} images are missing: {shown}: no such image file there or in "
                f"its subfolder images/"
            )
        return {name: RawImage(path) for name, path in paths.items()}
