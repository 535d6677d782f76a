"""The images that go with a folder of questions, by name."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.sources import ImageSource, RawImage
from zoomearth_jax.data_pipeline.images.tiles import SHARDS, StoredImage, TileStore, expanded, is_store
from zoomearth_jax.errors import UserError

_STORES = ("tiles", ".")  # subfolders of the folder, in this order
_FILES = ("images", ".")


def open_image(path, config: ImageConfig = ImageConfig()) -> ImageSource:
    """An image file, or an image of a tile store: STORE/NAME, or only STORE if it holds one image.

    Raises:
        UserError: neither is there, or it can't be read.
    """
    path = expanded(path)
    try:
        is_file = path.is_file()
    except OSError as error:
        raise UserError(f"{path}: not a readable image ({error.strerror})") from None
    if not is_file:
        for folder in (path, *path.parents):
            if (folder / SHARDS).is_dir():
                store = TileStore.open(folder, config)
                return store.the_image() if folder == path else store.image(path.relative_to(folder).as_posix())
        if path.is_dir():
            raise UserError(
                f"{path}: a folder, not an image; name an image file, or a tile store's image as STORE/NAME"
            )
    return RawImage(path, config)


class ImageFolder:
    """Images of a folder: of the tile store in its subfolder tiles/, or plain files in images/ or in the folder itself.

    The folder may be a tile store itself. What a store has is read from there, what it lacks from files. A stored image is
    found by the names that its file has or had here (`x.tif` and `images/x.tif` are one), and by its id.
    """

    def __init__(self, directory, config: ImageConfig = ImageConfig()):
        """Reads the index of a tile store if there is one.

        Args:
            config: how files become RGB. A store's own bands and stretch rule; others beside it are refused.

        Raises:
            UserError: a broken store, or one of other settings.
        """
        self.directory, self.config = expanded(directory), config
        folders = [self.directory / place for place in _STORES]
        self._stores = [TileStore.open(folder, config) for folder in folders if is_store(folder)]
        self._real = os.path.realpath(self.directory)

    def get(self, name: str) -> ImageSource | None:
        """The image of that file name; None if there is none.

        Raises:
            UserError: the name leads out of the folder, or the file is unreadable.
        """
        if Path(name).is_absolute() or ".." in Path(name).parts:  # links to other disks are the user's own, and fine
            raise UserError(f"image {name!r} is not inside the folder {self.directory}")
        named = [store.image(name) for store in self._stores if name in store]
        try:
            for path in self._paths(name):
                if made := [image for store in self._stores if (image := store.made_of(path))]:
                    return made[0]
                if path.is_file():
                    from_elsewhere = [image for image in named if not self._made_here(image)]
                    return from_elsewhere[0] if from_elsewhere else RawImage(path, self.config)
        except OSError as error:
            raise UserError(f"image {name[:100]!r} can't be looked up in {self.directory} ({error.strerror})") from None
        except ValueError:  # a character that no path can have
            return None
        return named[0] if named else None

    def _paths(self, name: str) -> Iterator[Path]:
        """Paths where an image's file may be, first the likeliest; names come in two Unicode normal forms."""
        for place in _FILES:
            for form in dict.fromkeys((name, *(unicodedata.normalize(kind, name) for kind in ("NFC", "NFD")))):
                yield self.directory / place / form

    def _made_here(self, image: StoredImage) -> bool:
        """Whether a stored image was made of a file in this folder, which then has a name of its own here."""
        source = os.path.normpath(os.path.join(os.path.realpath(image.directory), image.record.source))
        return bool(image.record.source) and source.startswith(self._real + os.sep)

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
                f"subfolder images/ or in a tile store in tiles/{self._unfinished()}"
            )
        return {name: image for name, image in images.items() if image is not None}

    def _unfinished(self) -> str:
        """A hint at a store that can't be read yet."""
        tiles = self.directory / _STORES[0]
        half = (tiles / SHARDS).is_dir() and not is_store(tiles)
        return f", which is not built to the end; run `zoomearth tile IMAGES... --out {tiles}` again" if half else ""
