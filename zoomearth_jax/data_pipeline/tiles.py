"""Tile stores: windows of very large images in milliseconds, without decoding the images (`zoomearth tile` makes them).

A store is a folder: `index.json` (format, version, settings, one record an image), `shards/` with one ArrayRecord file an
image, and `quarantine.jsonl` with the files that were refused. A shard holds 256 px tiles of levels that halve the image
again and again (means of 2 x 2 px), and exact global views. Without index.json a folder is no store.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from zoomearth_jax.data_pipeline.boxes import Box, Frame
from zoomearth_jax.data_pipeline.image_folder import ImageFolder
from zoomearth_jax.data_pipeline.images import ImageSource, resized, span
from zoomearth_jax.errors import UserError

FORMAT, VERSION = "zoomearth tile store", 1
INDEX, SHARDS, QUARANTINE = "index.json", "shards", "quarantine.jsonl"
TILE = 256  # px
EXACT_SIDE = 2048  # windows up to this side are read from the full resolution
UNIT = 28  # px of a merged visual token: the sides of stored views are its multiples


@dataclasses.dataclass(frozen=True)
class StoreSettings:
    """What all images of a store have in common.

    Attributes:
        codec: of the tiles: `webp` is lossless, `jpeg` is quality 95 with full colour resolution.
        views: longest sides in px of the global views that are stored beside the tiles.
        bands, stretch: see `decoding.Channels`.
    """

    codec: str = "webp"
    views: tuple[int, ...] = (512, 1024)
    bands: tuple[int, int, int] | None = None
    stretch: tuple[float, float] | None = None

    @classmethod
    def from_json(cls, values: dict) -> StoreSettings:
        """The settings that `dataclasses.asdict` and JSON made of them."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """What the index says of an image.

    Attributes:
        id: the file's name.
        width, height: px of the original.
        levels: per level, finest first, the number of the first record of each row of tiles.
        views: (width, height, number of the record) of each global view.
        shard, sha256: name and hash of the shard file.
        source_sha256, source_bytes, source_mtime_ns: of the original.
    """

    id: str
    width: int
    height: int
    levels: tuple[tuple[int, ...], ...]
    views: tuple[tuple[int, int, int], ...]
    shard: str
    sha256: str
    source_sha256: str
    source_bytes: int
    source_mtime_ns: int

    @classmethod
    def from_json(cls, values: dict) -> ImageRecord:
        """The record that `dataclasses.asdict` and JSON made of it."""
        lists = {key: tuple(tuple(row) for row in values[key]) for key in ("levels", "views")}
        return cls(**{**values, **lists})


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image of a store; an `ImageSource`. It pickles as a path and a record, opens when read, and threads may share it."""

    directory: Path
    record: ImageRecord

    @property
    def frame(self) -> Frame:
        """Size of the original."""
        return Frame(self.record.width, self.record.height)

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """See `ImageSource.window`. Equal to `RawImage.window` up to EXACT_SIDE px and for stored global views.

        Larger windows come from the coarsest level with at least 2 px per px of `size`, unless `exact`.

        Raises:
            UserError: the shard is damaged or gone.
        """
        if box.corners == (0, 0, *dataclasses.astuple(self.frame)):
            for *stored, number in self.record.views:
                if stored == [size.width, size.height]:
                    return np.array(self._tiles([number])[0])
        level = 0 if exact else level_for(box, size, len(self.record.levels))
        return resized(*self._around(level, box, size), size)

    def _around(self, level: int, box: Box, size: Frame) -> tuple[Image.Image, tuple[float, ...]]:
        """The tiles that a resized window depends on, as one picture, and the window's corners in it."""
        columns, left, right = _tile_range(box.x1, box.x2, size.width, level, self.record.width)
        rows, top, bottom = _tile_range(box.y1, box.y2, size.height, level, self.record.height)
        starts = self.record.levels[level]
        places = [(column, row) for row in rows for column in columns]
        tiles = self._tiles([starts[row] + column for column, row in places])
        width = min(columns.stop * TILE, _ceil_shift(self.record.width, level)) - columns.start * TILE
        height = min(rows.stop * TILE, _ceil_shift(self.record.height, level)) - rows.start * TILE
        pixels = Image.new("RGB", (width, height))
        for (column, row), tile in zip(places, tiles, strict=True):
            pixels.paste(tile, ((column - columns.start) * TILE, (row - rows.start) * TILE))
        return pixels, (left, top, right, bottom)

    def _tiles(self, numbers: list[int]) -> list[Image.Image]:
        path = self.directory / SHARDS / self.record.shard
        try:
            blobs = _reader(str(path), self.record.sha256).read(numbers)
            return list(_threads().map(_decode, blobs)) if len(blobs) > 2 else [_decode(blob) for blob in blobs]
        except (RuntimeError, ValueError, OSError, SyntaxError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{self.directory}: image {self.record.id!r} is damaged ({said}); remove {path} and run `zoomearth tile` again"
            ) from None


def level_for(box: Box, size: Frame, levels: int) -> int:
    """The level that a window is read from: 0 is the full resolution."""
    width, height = box.x2 - box.x1, box.y2 - box.y1
    if max(width, height) <= EXACT_SIDE:
        return 0
    oversampling = min(width / size.width, height / size.height)
    return min(max(math.floor(math.log2(max(oversampling / 2, 1))), 0), levels - 1)


def _tile_range(low: float, high: float, size: int, level: int, whole: int) -> tuple[range, float, float]:
    """Tiles of one axis that a resize to `size` reads, and the window's edges from the first tile's edge on."""
    low, high = (
        float(np.float32(edge)) / 2**level for edge in (low, high)
    )  # rounded as in `resized`, before any shift
    first, last = span(low, high, size, _ceil_shift(whole, level))
    tiles = range(first // TILE, (last - 1) // TILE + 1)
    return tiles, low - tiles.start * TILE, high - tiles.start * TILE


def _ceil_shift(side: int, level: int) -> int:
    return -(-side >> level)


def _decode(blob: bytes) -> Image.Image:
    tile = Image.open(io.BytesIO(blob), formats=("WEBP", "JPEG"))
    tile.load()
    return tile


@functools.lru_cache(maxsize=128)  # file descriptors are few
def _reader(path: str, sha256: str) -> ArrayRecordReader:
    """The hash makes a shard that was built anew another entry."""
    reader = ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")
    if not reader.num_records():
        raise ValueError("no records: the file is cut off, or missing")
    return reader


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0))), thread_name_prefix="tiles")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a forked child has none of the threads


@dataclasses.dataclass(frozen=True)
class TileStore:
    """A store that was built to the end. Pickles as its path.

    Attributes:
        directory: the store's folder.
        settings: what all images have in common.
        records: id -> record.
    """

    directory: Path
    settings: StoreSettings
    records: dict[str, ImageRecord]

    @classmethod
    def open(cls, directory) -> TileStore:
        """Reads the index alone.

        Raises:
            UserError: no store, not built to the end, or of another version.
        """
        directory = Path(directory)
        if not is_store(directory):
            hint = f"run `zoomearth tile IMAGES... --out {directory}` (again)"
            half = "a tile store that is not built to the end" if (directory / SHARDS).is_dir() else "no tile store"
            raise UserError(f"{directory}: {half}; {hint}")
        try:
            index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
            check_version(directory, index)
            records = {record["id"]: ImageRecord.from_json(record) for record in index["images"]}
            return cls(directory, StoreSettings.from_json(index["settings"]), records)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{directory / INDEX}: not a tile store's index ({error!r}); build the store anew"
            ) from None

    def image(self, name: str) -> StoredImage:
        """The image of that file name.

        Raises:
            UserError: the store has none.
        """
        if name not in self.records:
            raise UserError(f"{self.directory}: no image {name!r} among the {len(self.records)} of this tile store")
        return StoredImage(self.directory, self.records[name])

    __getitem__ = image

    def __contains__(self, name: object) -> bool:
        return name in self.records

    def __len__(self) -> int:
        return len(self.records)

    def __reduce__(self):
        return TileStore.open, (self.directory,)


def check_version(directory: Path, index: dict) -> None:
    """Refuses what another program or another version wrote."""
    if index["format"] != FORMAT or index["version"] != VERSION:
        raise UserError(
            f"{directory}: {index['format']!r} version {index['version']}, this program reads {FORMAT!r} version {VERSION}; "
            f"build the store anew"
        )


def is_store(directory) -> bool:
    """Whether a folder is a store that was built to the end."""
    return (Path(directory) / INDEX).is_file() and (Path(directory) / SHARDS).is_dir()


def open_images(directory) -> Callable[[str], ImageSource]:
    """A function from a name to an image: of a tile store, or of the plain files in a folder."""
    if is_store(directory):
        return TileStore.open(directory).image
    folder = ImageFolder(directory)
    return lambda name: folder.open([name])[name]
