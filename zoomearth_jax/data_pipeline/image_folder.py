"""The images that go with a folder of questions, by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images import ImageSource, RawImage
from zoomearth_jax.data_pipeline.tiles import TileStore, is_store
from zoomearth_jax.errors import UserError

_STORES = ("tiles", ".")  # subfolders of the folder, in this order
_FILES = ("images", ".")


class ImageFolder:
    """Images of a folder: of the tile store in its subfolder tiles/, or plain files in images/ or in the folder itself.

    The folder may be a tile store itself. What a store has is read from there, what it lacks from files.
    """

    def __init__(self, directory, config: ImageConfig = ImageConfig()):
        """Reads the index of a tile store if there is one.

        Raises:
            UserError: a broken store.
        """
        self.directory, self.config = Path(directory), config
        self._stores = [TileStore.open(self.directory / place) for place in _STORES if is_store(self.directory / place)]

    def get(self, name: str) -> ImageSource | None:
        """The image of that file name; None if there is none.

        Raises:
            UserError: the name leads out of the folder, or the file is unreadable.
        """
        for store in self._stores:
            if name in store:
                return store.image(name)
        if Path(name).is_absolute() or ".." in Path(name).parts:  # links to other disks are the user's own, and fine
            raise UserError(f"image {name!r} is not inside the folder {self.directory}")
        for place in _FILES:
            path = self.directory / place / name
            if path.is_file():
                return RawImage(path, self.config)
        return None

    def open(self, names: Iterable[str]) -> dict[str, ImageSource]:
        """Images by name.

        Raises:
            UserError: as `get` does; or images are missing: how many, and the first.
        """
        images = {name: self.get(name) for name in dict.fromkeys(names)}
        missing = [name for name, image in images.items() if image is None]
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise UserError(
                f"{self.directory}: {len(missing)} of {len(images)} images are missing: {shown}: no such image file there, in its "
                f"subfolder images/ or in a tile store in tiles/"
            )
        return images
