"""Builds tile stores from image files, strip by strip: memory follows an image's width, never its area.

An image is complete when its record stands in `records/`, written after its shard; the index follows when all images are
done. So a build that was killed goes on where it was, and nothing half-built can be opened.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.boxes import view_size
from zoomearth_jax.data_pipeline.decoding import ImageFile
from zoomearth_jax.data_pipeline.tile_codecs import delta_encoded, encoded
from zoomearth_jax.data_pipeline.tiles import (
    FORMAT,
    INDEX,
    QUARANTINE,
    SHARDS,
    TILE,
    UNIT,
    VERSION,
    ImageRecord,
    StoreSettings,
    TileStore,
    check_version,
)
from zoomearth_jax.errors import UserError

_RECORDS, _SETTINGS = "records", "settings.json"
_PENDING = 128  # tiles of an image that are being encoded or wait to be written: 32 MB
# More effort for WebP: a few % smaller, several times slower.
_LOSSLESS = functools.partial(encoded, format="WEBP", lossless=True, quality=0, method=0)
_ENCODERS = {
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


class _Stopped(Exception):
    """Another image's failure, or the user, ended the build."""


def build_store(
    paths: list[Path],
    directory: Path,
    settings: StoreSettings,
    *,
    workers: int,
    strict: bool = False,
    progress: Callable[[int], None] = lambda pixels: None,
) -> BuildReport:
    """Adds images to a store, new or old; those that are there and unchanged are kept.

    Args:
        paths: files of distinct names.
        workers: images that are built at a time, and threads that encode.
        strict: a file that can't be read ends the build, instead of going to the quarantine manifest.
        progress: told the pixels that were added, from several threads.

    Raises:
        UserError: two files of one name, other settings than the store's, another build at work, a disk that is full.
    """
    _check_names(paths)
    with _writing(directory), _locked(directory):
        _prepare(directory, settings)
        wanted = [path for path in paths if not _known(directory, path)]
        if wanted:  # from here on the store is visibly incomplete
            (directory / INDEX).unlink(missing_ok=True)
        refused = _build_all(wanted, directory, settings, workers, strict, progress)
        _finish(directory, settings, paths, refused)
    return BuildReport(len(wanted) - len(refused), len(paths) - len(wanted), refused)


def verify_store(directory: Path, progress: Callable[[str], None] = lambda name: None) -> dict[str, str]:
    """Compares every shard with the hash in the index; returns id -> what is wrong.

    Raises:
        UserError: no store.
    """
    store, damaged = TileStore.open(directory), {}
    for record in store.records.values():
        shard = store.directory / SHARDS / record.shard
        try:
            if _sha256(shard) != record.sha256:
                damaged[record.id] = f"{shard} is not the file that was built"
        except OSError as error:
            damaged[record.id] = f"{shard}: {error.strerror}"
        progress(record.id)
    return damaged


def _check_names(paths: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        if path.name in seen:
            raise UserError(
                f"two images are named {path.name}: {seen[path.name]} and {path}; names are ids, so rename one"
            )
        seen[path.name] = path


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """A store that can't be written is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{directory}: can't write the tile store ({error.strerror or error})") from None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One build at a time; the lock of a killed one goes with it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{directory}: another `zoomearth tile` is building this store; wait for it") from None
        yield


def _prepare(directory: Path, settings: StoreSettings) -> None:
    """Folders, without what a killed build left; the settings, which stay as they are."""
    for folder in (SHARDS, _RECORDS):
        (directory / folder).mkdir(exist_ok=True)
        for partial in (directory / folder).glob("*.partial"):
            partial.unlink()
    path = directory / _SETTINGS
    if not path.exists():
        _write_json(path, {"format": FORMAT, "version": VERSION, "settings": dataclasses.asdict(settings)})
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        check_version(directory, known)
        old = StoreSettings.from_json(known["settings"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a tile store's settings ({error!r}); build the store anew") from None
    for field in dataclasses.fields(StoreSettings):
        was, now = getattr(old, field.name), getattr(settings, field.name)
        if was != now:
            raise UserError(f"{directory}: was built with {field.name} {was}, not {now}; use another folder")


def _known(directory: Path, path: Path) -> bool:
    """Whether the store holds an image, made of the file as it is now."""
    try:
        record = ImageRecord.from_json(json.loads(_record_path(directory, path.name).read_text(encoding="utf-8")))
        stat = path.stat()
        unmoved = (stat.st_size, stat.st_mtime_ns) == (record.source_bytes, record.source_mtime_ns)
        return (directory / SHARDS / record.shard).is_file() and (unmoved or _sha256(path) == record.source_sha256)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _build_all(wanted, directory, settings, workers, strict, progress) -> dict[str, str]:
    """Builds images in threads: decoding, scaling and encoding all leave Python's lock. Returns path -> why refused."""
    refused, stop = {}, threading.Event()

    def build(path: Path) -> None:
        _record_path(directory, path.name).unlink(missing_ok=True)
        try:
            image = ImageFile(path, ImageConfig(settings.bands, settings.stretch))
            _ImageBuild(image, directory, settings, encoders, stop).run(progress)
        except UserError as error:
            if strict:
                raise
            refused[str(path)] = str(error).removeprefix(f"{path}: ")

    with ThreadPoolExecutor(workers) as encoders, ThreadPoolExecutor(workers) as builders:
        futures = [builders.submit(build, path) for path in wanted]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            builders.shutdown(cancel_futures=True)
            raise
    return refused


def _finish(directory: Path, settings: StoreSettings, paths: list[Path], refused: dict[str, str]) -> None:
    """The manifest of what was refused, now or before, then the index; shards that nothing names go last."""
    given = {str(path) for path in paths}
    path = directory / QUARANTINE
    old = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    lines = [line for line in old if json.loads(line)["file"] not in given]
    lines += [json.dumps({"file": file, "reason": reason}) for file, reason in sorted(refused.items())]
    _write_text(path, "".join(f"{line}\n" for line in lines))
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((directory / _RECORDS).glob("*.json"))]
    records.sort(key=lambda record: record["id"])
    index = {"format": FORMAT, "version": VERSION, "settings": dataclasses.asdict(settings), "images": records}
    _write_json(directory / INDEX, index)
    named = {record["shard"] for record in records}
    for shard in (directory / SHARDS).iterdir():
        if shard.name not in named:
            shard.unlink()


class _ImageBuild:
    """One image's way into its shard."""

    def __init__(self, image: ImageFile, directory: Path, settings: StoreSettings, encoders: Executor, stop):
        self.image, self.directory, self.encoders, self.stop = image, directory, encoders, stop
        self.encode, frame = _ENCODERS[settings.codec], image.frame
        self.sizes = list(dict.fromkeys(view_size(frame.width, frame.height, px, UNIT) for px in settings.views))
        self.squeezed: list[list[np.ndarray]] = [[] for _ in self.sizes]  # strips at a view's width, full height
        depth = max(-(-max(frame.width, frame.height) // TILE) - 1, 0).bit_length()
        self.levels: list[list[int]] = [[] for _ in range(depth + 1)]
        self.halves: list[list[Image.Image]] = [[] for _ in self.levels]
        self.pending: collections.deque[Future] = collections.deque()
        self.count = 0

    def run(self, progress: Callable[[int], None]) -> None:
        """Writes shard and record.

        Raises:
            UserError: broken image data.
            OSError: the disk is full, or the like.
        """
        path, frame = self.image.path, self.image.frame
        stat, source = _identity(path)
        name = f"{_hashed(path.name)}_{source[:8]}.array_record"
        partial = self.directory / SHARDS / f"{name}.partial"
        with _shard_writer(partial, self.encode is delta_encoded) as self.writer:
            for strip in self.image.strips(TILE):
                self._add_strip(Image.fromarray(strip))
                progress(strip.shape[0] * strip.shape[1])
            views = self._add_views()
            self._drain(0)
        _check_shard(partial, self.count)
        record = ImageRecord(
            *(path.name, frame.width, frame.height, self.levels, views, name, _sha256(partial), source),
            *(stat.st_size, stat.st_mtime_ns),
        )
        partial.replace(self.directory / SHARDS / name)
        _write_json(_record_path(self.directory, path.name), dataclasses.asdict(record))

    def _add_strip(self, strip: Image.Image) -> None:
        """A row of full-size tiles. Views' columns are resized here, their rows at the end, as in `images.resized`."""
        if self.stop.is_set():
            raise _Stopped
        for size, squeezed in zip(self.sizes, self.squeezed, strict=True):
            squeezed.append(np.asarray(strip.resize((size.width, strip.height), Image.Resampling.BICUBIC)))
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
            tall = Image.fromarray(np.concatenate(squeezed))
            self._submit(tall.resize((size.width, size.height), Image.Resampling.BICUBIC), _LOSSLESS)
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
    """Leaves no partial file where the image turns out broken; ArrayRecord's own errors become OSError."""
    writer = None
    try:
        writer = ArrayRecordWriter(str(path), "group_size:1," + ("zstd:1" if compressed else "uncompressed"))
        yield writer
        writer.close()
    except BaseException as error:
        with contextlib.suppress(Exception):
            writer.close()
        path.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):
            raise OSError(str(error).splitlines()[0]) from None
        raise


def _check_shard(path: Path, count: int) -> None:
    """A full disk can pass a writer by unnoticed."""
    found = ArrayRecordReader(str(path)).num_records()
    if found != count:
        path.unlink()
        raise OSError(f"{path}: holds {found} of {count} records; is the disk full?")


def _identity(path: Path) -> tuple[os.stat_result, str]:
    try:
        return path.stat(), _sha256(path)
    except OSError as error:
        raise UserError(f"{path}: not a readable image ({error.strerror})") from None


def _record_path(directory: Path, name: str) -> Path:
    return directory / _RECORDS / f"{_hashed(name)}.json"


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, values: dict) -> None:
    _write_text(path, json.dumps(values) + "\n")


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
