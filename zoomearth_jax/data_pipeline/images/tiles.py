"""Tile stores: windows of very large images in milliseconds, without decoding the images (`zoomearth tile` makes them).

A store is a folder: `index.json` (format, version, settings, one record per image), `shards/` with one ArrayRecord file per
image, and `quarantine.jsonl` with the files that were refused. A shard holds 256 px tiles of levels that halve the image
again and again (means of 2 x 2 px), and exact global views. Without index.json a folder is no store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.georeference import Georeference
from zoomearth_jax.data_pipeline.images.sources import columns_resized, rows_resized, span
from zoomearth_jax.data_pipeline.images.tile_codecs import decoded, decoded_row
from zoomearth_jax.errors import UserError, suggestion

FORMAT, VERSION = "zoomearth tile store", 1
INDEX, SETTINGS, QUARANTINE, LOCK = "index.json", "settings.json", "quarantine.jsonl", ".lock"
SHARDS, RECORDS = "shards", "records"
STORE_FILES, STORE_FOLDERS = frozenset({INDEX, SETTINGS, QUARANTINE, LOCK}), frozenset({SHARDS, RECORDS})
TILE = 256  # px
EXACT_SIDE = 2048  # windows up to this side are read from the full resolution


@dataclasses.dataclass(frozen=True)
class StoreSettings:
    """What all images of a store have in common.

    Attributes:
        codec: form of the tiles: `delta` (see `tile_codecs`) and `webp` are lossless, `jpeg` is quality 95 with full colour
            resolution.
        views: longest sides in px of the global views that are stored beside the tiles.
        token_px: side in px of a visual token of the models that will read the views, whose sides are its multiples (see
            `models.family.Sizes.merged_px`; 28 is Qwen2.5-VL's). Other models' views are read from the levels.
        bands, stretch: see `configs.images.ImageConfig`.
    """

    codec: str = "delta"
    views: tuple[int, ...] = (512, 1024)
    token_px: int = 28
    bands: tuple[int, int, int] | None = None
    stretch: tuple[float | str, ...] = ()

    @classmethod
    def from_json(cls, values: dict) -> StoreSettings:
        """The settings that `dataclasses.asdict` and JSON made of them."""
        known = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**known | {"stretch": known["stretch"] or ()})  # null in older stores

    def other_than(self, given: ImageConfig) -> str:
        """How bands or stretch that somebody gives differ from the store's, in words; "" where they don't.

        A store without a stretch has only 8-bit images, which no stretch changes.
        """
        if given.bands and given.bands != (self.bands or (1, 2, 3)):
            return f"with {_flag('bands', self.bands)}, not {_flag('bands', given.bands)}"
        if given.stretch and self.stretch and given.stretch != self.stretch:
            return f"with {_flag('stretch', self.stretch)}, not {_flag('stretch', given.stretch)}"
        return ""


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """What the index says of an image.

    Attributes:
        id: the name of the file in the folder that was given to `zoomearth tile`, "/" between subfolders; the file's own name
            where it was given singly.
        width, height: px of the original.
        levels: per level, finest first, the number of the first record of each row of tiles.
        views: (width, height, number of the record) of each global view.
        shard, sha256: name and hash of the shard file.
        source_sha256, source_bytes, source_mtime_ns: hash, size and time of the original file.
        source: where that was, seen from the store's folder (see `source_of`); "" in older stores.
        georeference: where the image lies on the earth; None where nobody knows, and in older stores.
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
    source: str = ""
    georeference: Georeference | None = None

    @classmethod
    def from_json(cls, values: dict) -> ImageRecord:
        """The record that `dataclasses.asdict` and JSON made of it."""
        lists = {key: tuple(tuple(row) for row in values[key]) for key in ("levels", "views")}
        return cls(**{**values, **lists, "georeference": Georeference.from_json(values.get("georeference"))})


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image of a store; an `ImageSource`. It pickles as a path and a record, opens when read, and threads may share it."""

    directory: Path
    record: ImageRecord
    codec: str

    @property
    def frame(self) -> Frame:
        """Size of the original."""
        return Frame(self.record.width, self.record.height)

    @property
    def georeference(self) -> Georeference | None:
        """Where the original lies on the earth, as it was when the store was built."""
        return self.record.georeference

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """See `ImageSource.window`. Equal to `RawImage.window` up to EXACT_SIDE px and for stored global views.

        Larger windows come from the coarsest level with at least 2 px per px of `size`, unless `exact`.

        Raises:
            UserError: the shard is damaged or gone.
        """
        if box.corners == (0, 0, *dataclasses.astuple(self.frame)):
            for *stored, number in self.record.views:
                if stored == [size.width, size.height]:
                    with self._clear():
                        return np.array(decoded(self._read([number])[0]))
        level = 0 if exact else level_for(box, size, len(self.record.levels))
        with self._clear():
            return self._resized(level, box, size)

    def _resized(self, level: int, box: Box, size: Frame) -> np.ndarray:
        """A window resized as by `images.resized`: rows of tiles in threads, each decoded and its columns resized; then rows."""
        x1, y1, x2, y2 = (float(np.float32(edge)) / 2**level for edge in box.corners)  # rounded before any shift
        width, height = (_ceil_shift(side, level) for side in (self.record.width, self.record.height))
        left, right = span(x1, x2, size.width, width)
        top, bottom = span(y1, y2, size.height, height)
        columns, rows = _tile_range(left, right), _tile_range(top, bottom)
        starts = [self.record.levels[level][row] for row in rows]
        blobs = self._read([start + column for start in starts for column in columns])
        x1, x2 = x1 - columns.start * TILE, x2 - columns.start * TILE

        def resized_row(row: int) -> Image.Image:
            first = (row - rows.start) * len(columns)
            widths = [min(TILE, width - column * TILE) for column in columns]
            tall = min(TILE, height - row * TILE)
            strip = decoded_row(blobs[first : first + len(columns)], widths, tall, self.codec)
            begin, end = max(top - row * TILE, 0), min(bottom - row * TILE, TILE)
            return columns_resized(strip.crop((0, begin, strip.width, end)), x1, x2, size.width)

        joined, filled = Image.new("RGB", (size.width, bottom - top)), 0
        for strip in _threads().map(resized_row, rows):
            joined.paste(strip, (0, filled))
            filled += strip.height
        return rows_resized(joined, y1 - top, y2 - top, size.height)

    def _read(self, numbers: list[int]) -> list[bytes]:
        return _reader(str(self._shard), self.record.sha256).read(numbers)

    @property
    def _shard(self) -> Path:
        return self.directory / SHARDS / self.record.shard

    @contextlib.contextmanager
    def _clear(self) -> Iterator[None]:
        """Turns what ArrayRecord and Pillow say of a broken shard into one line."""
        try:
            yield
        except (RuntimeError, ValueError, OSError, SyntaxError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            hint = f"remove {self._shard} and run `zoomearth tile` again"
            raise UserError(f"{self.directory}: image {self.record.id!r} is damaged ({said}); {hint}") from None


def level_for(box: Box, size: Frame, levels: int) -> int:
    """The level that a window is read from: 0 is the full resolution."""
    width, height = box.x2 - box.x1, box.y2 - box.y1
    if max(width, height) <= EXACT_SIDE:
        return 0
    oversampling = min(width / size.width, height / size.height)
    return min(max(math.floor(math.log2(max(oversampling / 2, 1))), 0), levels - 1)


def _tile_range(first: int, last: int) -> range:
    """The tiles of one axis that hold the px [first, last)."""
    return range(first // TILE, (last - 1) // TILE + 1)


def _ceil_shift(side: int, level: int) -> int:
    return -(-side >> level)


@functools.lru_cache(maxsize=128)  # file descriptors are few
def _reader(path: str, sha256: str) -> ArrayRecordReader:
    """The reader of a shard. The hash makes a shard that was built anew another entry."""
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
    def open(cls, directory, config: ImageConfig = ImageConfig()) -> TileStore:
        """Reads only the index.

        Args:
            config: what is given beside the store. Its own bands and stretch rule, so others are refused.

        Raises:
            UserError: no store, not built to the end, of another version, or built with other settings.
        """
        directory = expanded(directory)
        if not is_store(directory):
            hint = f"run `zoomearth tile IMAGES... --out {directory}` (again)"
            half = "a tile store that is not built to the end" if (directory / SHARDS).is_dir() else "no tile store"
            raise UserError(f"{directory}: {half}; {hint}")
        try:
            index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
            check_version(directory, index)
            records = {record["id"]: ImageRecord.from_json(record) for record in index["images"]}
            store = cls(directory, StoreSettings.from_json(index["settings"]), records)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{directory / INDEX}: not a tile store's index ({error!r}); build the store anew"
            ) from None
        if other := store.settings.other_than(config):
            raise UserError(f"{directory}: this tile store was built {other}; leave that out, or build another store")
        return store

    def image(self, name: str) -> StoredImage:
        """The image of that id, in either Unicode normal form.

        Raises:
            UserError: the store has none.
        """
        record = self._find(name)
        if record is None:
            hint = suggestion(name, self.records, "`zoomearth tile` lists them")
            raise UserError(f"{self.directory}: no image {name!r} among the {len(self)} of this tile store; {hint}")
        return StoredImage(self.directory, record, self.settings.codec)

    __getitem__ = image

    def the_image(self) -> StoredImage:
        """The store's only image.

        Raises:
            UserError: there are several, or none.
        """
        if len(self) == 1:
            return self.image(next(iter(self.records)))
        examples = ", ".join(f"{self.directory / name}" for name in list(self.records)[:3])
        more = ", ..." if len(self) > 3 else ""
        hint = f"; name one of them, such as {examples}{more}" if self.records else ""
        raise UserError(f"{self.directory}: this tile store holds {len(self)} images{hint}")

    def made_of(self, path: Path) -> StoredImage | None:
        """The image that was made of the file at `path`, whether that is still there or not; None if there is none."""
        record = self._by_source.get(_normal(source_of(path, self.directory)))
        return None if record is None else self.image(record.id)

    def _find(self, name: object) -> ImageRecord | None:
        return (self.records.get(name) or self._by_id.get(_normal(name))) if isinstance(name, str) else None

    @functools.cached_property
    def _by_id(self) -> dict[str, ImageRecord]:
        return {_normal(record.id): record for record in self.records.values()}

    @functools.cached_property
    def _by_source(self) -> dict[str, ImageRecord]:
        return {_normal(record.source): record for record in self.records.values() if record.source}

    def __contains__(self, name: object) -> bool:
        return self._find(name) is not None

    def __len__(self) -> int:
        return len(self.records)

    def __reduce__(self):
        return TileStore.open, (self.directory,)


def source_of(path: Path, directory: Path) -> str:
    """Where a file is, seen from a store's folder: so both may be moved together.

    Links among the folders are followed; the file's own name stays, because that is what it is called by.
    """
    real = os.path.join(os.path.realpath(path.parent), path.name)
    return os.path.relpath(real, os.path.realpath(directory))


def _normal(name: str) -> str:
    """A name in one of the ways to write it: folders are separated once, and letters with accents composed (NFC)."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name)))


def expanded(path) -> Path:
    """A path whose ~ is the home folder; `~x`, where no user x is known, is a name like others."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _flag(name: str, values: tuple | None) -> str:
    """A setting as it is typed."""
    words = " ".join(str(value).removesuffix(".0") for value in values or ())
    return f"--{name} {words}" if words else f"no --{name}"


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
