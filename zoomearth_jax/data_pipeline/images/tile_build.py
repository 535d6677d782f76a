"""Builds tile stores from image files, strip by strip: memory follows an image's width, never its area.

An image is complete when its record stands in `records/`, written after its shard; the index follows when all images are
done. So a build that was killed goes on where it was, and nothing half-built can be opened. A store without images is none:
what a build that stored nothing has made goes again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image

from zoomearth_jax.configs.images import MAX_PIXELS, ImageConfig
from zoomearth_jax.data_pipeline.images.boxes import view_size
from zoomearth_jax.data_pipeline.images.decoding import ImageFile
from zoomearth_jax.data_pipeline.images.tile_codecs import delta_encoded, encoded
from zoomearth_jax.data_pipeline.images.tile_folder import (
    check_owner,
    finish,
    hashed,
    kept_georeference,
    locked,
    name_images,
    prepare,
    read_records,
    record_path,
    remove,
    sha256,
    unchanged,
    write_record,
)
from zoomearth_jax.data_pipeline.images.tiles import (
    INDEX,
    SHARDS,
    TILE,
    ImageRecord,
    StoreSettings,
    TileStore,
    expanded,
    source_of,
)
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import writing

_PENDING = 128  # tiles of an image that are being encoded or wait to be written: 32 MB
# More effort for WebP: a few % smaller, several times slower.
_LOSSLESS = functools.partial(encoded, format="WEBP", lossless=True, quality=0, method=0)
_ENCODERS: dict[str, Callable[[Image.Image], bytes]] = {
    "delta": delta_encoded,
    "webp": _LOSSLESS,
    "jpeg": functools.partial(encoded, format="JPEG", quality=95, subsampling=0),
}


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What a build did: numbers of images, and path -> reason of those refused."""

    built: int
    kept: int
    refused: dict[str, str]


# what decoders raise on files that nobody foresaw: one of them doesn't end the others' build
_UNFORESEEN = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, AssertionError)


class _Stopped(Exception):
    """Raised where another image's failure, or the user, ended the build."""


def build_store(
    paths: Sequence[Path],
    directory: Path,
    settings: StoreSettings,
    *,
    ids: Sequence[str] | None = None,
    workers: int,
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], None] = lambda pixels: None,
) -> BuildReport:
    """Adds images to a store, new or old; those that are there and unchanged are kept.

    Args:
        ids: ids of the images; the files' names by default. A file that the store has under another id keeps that.
        workers: images that are built at a time, and threads that encode.
        strict: a file that can't be read ends the build, instead of going to the quarantine manifest.
        max_pixels: larger files are refused.
        progress: told the pixels that were added, from several threads.

    Raises:
        UserError: two files of one id, other settings than the store's, another build at work, a disk that is full.
    """
    directory, paths = expanded(directory), [expanded(path) for path in paths]
    with writing(directory), locked(directory):
        check_owner(directory)
        records = read_records(directory)
        try:
            images = name_images(paths, ids or [path.name for path in paths], records, directory)
            prepare(directory, settings, new=not records)
            config = ImageConfig(settings.bands, settings.stretch, max_pixels)
            kept = unchanged(images, records, directory, config)
            wanted = {name: path for name, path in images.items() if name not in kept}
            if wanted:  # from here on the store is visibly incomplete
                (directory / INDEX).unlink(missing_ok=True)
            refused = _build_all(wanted, records, directory, settings, config, workers, strict, progress)
            finish(directory, settings, records, images, refused)
        finally:
            if not records:
                remove(directory)
    return BuildReport(len(wanted) - len(refused), len(kept), {str(images[name]): why for name, why in refused.items()})


def verify_store(directory: Path, progress: Callable[[str], None] = lambda name: None) -> dict[str, str]:
    """Compares every shard with the hash in the index; returns id -> what is wrong.

    Raises:
        UserError: no store.
    """
    store, damaged = TileStore.open(directory), {}
    for record in store.records.values():
        shard = store.directory / SHARDS / record.shard
        try:
            if sha256(shard) != record.sha256:
                damaged[record.id] = f"{shard} is not the file that was built"
        except OSError as error:
            damaged[record.id] = f"{shard}: {error.strerror}"
        progress(record.id)
    return damaged


def _build_all(wanted, records, directory, settings, config, workers, strict, progress) -> dict[str, str]:
    """Builds images in threads: decoding, scaling and encoding all leave Python's lock. Returns id -> why refused.

    `records` gets those of the images that are done, and loses those of the others.
    """
    refused: dict[str, str] = {}
    stop = threading.Event()

    def build(name: str, path: Path) -> None:
        record_path(directory, name).unlink(missing_ok=True)
        records.pop(name, None)
        try:
            image = _ImageBuild(name, ImageFile(path, config), directory, settings, encoders, stop)
            records[name] = image.run(progress)
        except (UserError, *_UNFORESEEN) as error:
            said = str(error) if isinstance(error, UserError) else f"can't be read ({type(error).__name__}: {error})"
            if strict:
                raise UserError(said if said.startswith(f"{path}: ") else f"{path}: {said}") from error
            refused[name] = " ".join(said.removeprefix(f"{path}: ").split())

    with ThreadPoolExecutor(workers) as encoders, ThreadPoolExecutor(workers) as builders:
        futures = [builders.submit(build, name, path) for name, path in wanted.items()]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            builders.shutdown(cancel_futures=True)
            raise
    return refused


class _ImageBuild:
    """Builds the shard of one image."""

    def __init__(self, name: str, image: ImageFile, directory: Path, settings: StoreSettings, encoders: Executor, stop):
        self.name, self.image, self.directory, self.encoders, self.stop = name, image, directory, encoders, stop
        self.encode, frame = _ENCODERS[settings.codec], image.frame
        views = (view_size(frame.width, frame.height, px, settings.token_px) for px in settings.views)
        self.sizes = list(dict.fromkeys(views))
        self.squeezed = [Image.new("RGB", (size.width, frame.height)) for size in self.sizes]  # to be resized in height
        depth = max(-(-max(frame.width, frame.height) // TILE) - 1, 0).bit_length()
        self.levels: list[list[int]] = [[] for _ in range(depth + 1)]
        self.halves: list[list[Image.Image]] = [[] for _ in self.levels]
        self.pending: collections.deque[Future] = collections.deque()
        self.count = 0

    def run(self, progress: Callable[[int], None]) -> ImageRecord:
        """Writes shard and record; returns the latter.

        Raises:
            UserError: broken image data.
            OSError: the disk is full, or the like.
        """
        path, frame = self.image.path, self.image.frame
        stat, source = _identity(path)
        name = f"{hashed(self.name)}_{source[:8]}.array_record"
        partial = self.directory / SHARDS / f"{name}.partial"
        with _shard_writer(partial, self.encode is delta_encoded) as self.writer:
            for strip in self.image.strips(TILE):
                self._add_strip(Image.fromarray(strip))
                progress(strip.shape[0] * strip.shape[1])
            views = self._add_views()
            self._drain(0)
        _check_shard(partial, self.count)
        record = ImageRecord(
            *(
                self.name,
                frame.width,
                frame.height,
                tuple(map(tuple, self.levels)),
                tuple(views),
                name,
                sha256(partial),
            ),
            *(
                source,
                stat.st_size,
                stat.st_mtime_ns,
                source_of(path, self.directory),
                kept_georeference(path, self.image.config),
            ),
        )
        partial.replace(self.directory / SHARDS / name)
        write_record(self.directory, record)
        return record

    def _add_strip(self, strip: Image.Image) -> None:
        """A row of full-size tiles. Views' columns are resized here, their rows at the end, as in `images.resized`."""
        if self.stop.is_set():
            raise _Stopped
        for size, squeezed in zip(self.sizes, self.squeezed, strict=True):
            narrow = strip.resize((size.width, strip.height), Image.Resampling.BICUBIC)
            squeezed.paste(narrow, (0, len(self.levels[0]) * TILE))
        last = (len(self.levels[0]) + 1) * TILE >= self.image.frame.height
        self._add_row(0, strip, last)

    def _add_row(self, level: int, row: Image.Image, last: bool) -> None:
        """A row of tiles of a level; every two of them, or the last, make one of the next."""
        self.levels[level].append(self.count)
        for left in range(0, row.width, TILE):
            self._submit(row.crop((left, 0, min(left + TILE, row.width), row.height)), self.encode)
        if level + 1 == len(self.levels):
            return
        halves = self.halves[level + 1]
        halves.append(row.reduce(2))
        if last or len(halves) == 2:
            joined = Image.new("RGB", (halves[0].width, sum(half.height for half in halves)))
            for index, half in enumerate(halves):
                joined.paste(half, (0, index * TILE // 2))
            halves.clear()
            self._add_row(level + 1, joined, last)

    def _add_views(self) -> list[tuple[int, int, int]]:
        places = []
        for size, squeezed in zip(self.sizes, self.squeezed, strict=True):
            places.append((size.width, size.height, self.count))
            self._submit(squeezed.resize((size.width, size.height), Image.Resampling.BICUBIC), _LOSSLESS)
        return places

    def _submit(self, tile: Image.Image, encode: Callable[[Image.Image], bytes]) -> None:
        self._drain(_PENDING - 1)
        self.pending.append(self.encoders.submit(encode, tile))
        self.count += 1

    def _drain(self, most: int) -> None:
        while len(self.pending) > most:
            self.writer.write(self.pending.popleft().result())


@contextlib.contextmanager
def _shard_writer(path: Path, compressed: bool) -> Iterator[ArrayRecordWriter]:
    """Opens a shard to write; leaves no partial file where the image turns out broken; ArrayRecord's own errors become OSError."""
    writer = None
    try:
        writer = ArrayRecordWriter(str(path), "group_size:1," + ("zstd:1" if compressed else "uncompressed"))
        yield writer
        writer.close()
    except BaseException as error:
        with contextlib.suppress(Exception):
            if writer is not None:
                writer.close()
        path.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):
            raise OSError(str(error).splitlines()[0]) from None
        raise


def _check_shard(path: Path, count: int) -> None:
    """Checks that a shard is whole: a writer may not notice a full disk."""
    found = ArrayRecordReader(str(path)).num_records()
    if found != count:
        path.unlink()
        raise OSError(f"{path}: holds {found} of {count} records; is the disk full?")


def _identity(path: Path) -> tuple[os.stat_result, str]:
    try:
        return path.stat(), sha256(path)
    except OSError as error:
        raise UserError(f"{path}: not a readable image ({error.strerror})") from None
