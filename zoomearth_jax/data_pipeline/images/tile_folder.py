"""A tile store's folder while it is built: its lock, its settings, the records of its images, and which files it knows."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.complaints import warn
from zoomearth_jax.data_pipeline.images.decoding import ImageFile
from zoomearth_jax.data_pipeline.images.georeference import Georeference
from zoomearth_jax.data_pipeline.images.tiles import (
    FORMAT,
    INDEX,
    LOCK,
    QUARANTINE,
    RECORDS,
    SETTINGS,
    SHARDS,
    STORE_FILES,
    STORE_FOLDERS,
    VERSION,
    ImageRecord,
    StoreSettings,
    TileStore,
    check_version,
    is_store,
    source_of,
)
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import Lock, write_file


def locked(directory: Path) -> Lock:
    """Locks a store's folder: one build at a time."""
    return Lock(directory, f"{directory}: another `zoomearth tile` is building this store; wait for it")


def check_owner(directory: Path) -> None:
    """Refuses a folder where another program has files of a store's names; they stay as they are."""
    path = directory / (SETTINGS if (directory / SETTINGS).exists() else INDEX)
    foreign = [name for name in sorted(STORE_FOLDERS | {QUARANTINE}) if (directory / name).exists()]
    if foreign and not path.exists():
        raise UserError(f"{directory / foreign[0]}: is there already, and no tile store; use another folder")
    if path.exists():
        with _understood(path):
            known = json.loads(path.read_text(encoding="utf-8"))
            check_version(directory, known)
            StoreSettings.from_json(known["settings"])


@contextlib.contextmanager
def _understood(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a tile store's settings ({error!r}); use another folder") from None


def read_records(directory: Path) -> dict[str, ImageRecord]:
    """Records of what is stored, by id: from the index if there is one, which is quick, else from the images' own records."""
    if is_store(directory):
        with contextlib.suppress(UserError):  # a broken index
            return dict(TileStore.open(directory).records)
    records = {}
    for file in sorted((directory / RECORDS).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            record = ImageRecord.from_json(json.loads(file.read_text(encoding="utf-8")))
            records[record.id] = record
    return records


def prepare(directory: Path, settings: StoreSettings, new: bool) -> None:
    """Makes the folders, without what a killed build left, and writes the settings, which stay once an image is stored."""
    path = directory / SETTINGS
    known = path if path.exists() else directory / INDEX
    if not new and known.exists():
        with _understood(known):
            old = StoreSettings.from_json(json.loads(known.read_text(encoding="utf-8"))["settings"])
        for field in dataclasses.fields(StoreSettings):
            was, now = getattr(old, field.name), getattr(settings, field.name)
            if was != now:
                raise UserError(f"{directory}: was built with {field.name} {was}, not {now}; use another folder")
    if new or not path.exists():
        write_json(path, {"format": FORMAT, "version": VERSION, "settings": dataclasses.asdict(settings)})
    for folder in (SHARDS, RECORDS):
        (directory / folder).mkdir(exist_ok=True)
        for partial in (directory / folder).glob("*.partial"):
            partial.unlink()


def remove(directory: Path) -> None:
    """Takes away a store that has no images."""
    for folder in STORE_FOLDERS:
        shutil.rmtree(directory / folder, ignore_errors=True)
    for file in STORE_FILES - {LOCK}:
        (directory / file).unlink(missing_ok=True)


def name_images(
    paths: Sequence[Path], ids: Sequence[str], records: dict[str, ImageRecord], directory: Path
) -> dict[str, Path]:
    """Maps ids to files. A file that the store has under another id keeps that, unless another file is called so now.

    Raises:
        UserError: two files of one id; or one whose id the store has for another file, which is still there.
    """
    sources, names = [source_of(path, directory) for path in paths], {*ids}
    given = {*sources}
    known = {record.source: record.id for record in records.values() if record.source}
    images: dict[str, Path] = {}
    for path, source, wanted in zip(paths, sources, ids, strict=True):
        had, older = known.get(source, wanted), records.get(path.name)
        name = had if had not in names else wanted
        if name not in records and older and not older.source and path.name not in names and path.name not in images:
            name = path.name if _same_content(older, path) else name  # ids were bare names once
        if name in images and source != source_of(images[name], directory):
            hint = "give the folder above both, so that names keep their subfolders, or build two stores"
            raise UserError(f"two images are named {name}: {images[name]} and {path}; {hint}")
        _check_owned(records.get(name), path, given, directory)
        images[name] = path
    return images


def _check_owned(record: ImageRecord | None, path: Path, given: set[str], directory: Path) -> None:
    """Refuses an id that the store has for another file, which is still there."""
    if record is None or not record.source or record.source in given or _same_content(record, path):
        return
    other = Path(os.path.normpath(os.path.join(os.path.realpath(directory), record.source)))
    if other.exists():
        raise UserError(
            f"{path}: the store has another image of the name {record.id}, {other}; use another folder for it"
        )


def unchanged(
    images: dict[str, Path], records: dict[str, ImageRecord], directory: Path, config: ImageConfig
) -> set[str]:
    """Ids of the images whose shard is there and made of the file as it is now; their records learn where that is, in the
    folders and on the earth."""
    shards, same = {shard.name for shard in (directory / SHARDS).iterdir()}, set()
    for name, path in images.items():
        record, source = records.get(name), source_of(path, directory)
        if record is None or record.shard not in shards or not _same_file(record, path, source):
            continue
        same.add(name)
        now = dataclasses.replace(
            record, source=source, source_mtime_ns=path.stat().st_mtime_ns, georeference=kept_georeference(path, config)
        )
        if now != record:
            records[name] = now
            write_record(directory, now)
    return same


def kept_georeference(path: Path, config: ImageConfig) -> Georeference | None:
    """Where an image lies on the earth; None where nobody knows, or in a way that isn't supported, which is a warning."""
    try:
        return ImageFile(path, config).georeference
    except UserError as error:
        warn(path, f"stored without its georeference: {error}")
        return None


def _same_file(record: ImageRecord, path: Path, source: str) -> bool:
    """Whether an image was made of the file; of a file elsewhere, size and time aren't trusted."""
    try:
        stat = path.stat()
    except OSError:
        return False
    unmoved = record.source in ("", source) and stat.st_mtime_ns == record.source_mtime_ns
    return stat.st_size == record.source_bytes and (unmoved or _same_content(record, path))


def _same_content(record: ImageRecord, path: Path) -> bool:
    try:
        return path.stat().st_size == record.source_bytes and sha256(path) == record.source_sha256
    except OSError:
        return False


def finish(directory, settings: StoreSettings, records: dict[str, ImageRecord], images, refused) -> None:
    """Writes the manifest of what was refused, now or before, then the index; shards that nothing names go last."""
    path, given = directory / QUARANTINE, {os.path.abspath(file) for file in images.values()}
    old = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    lines = [line for line in old if _file_in(line) not in given]
    for name, reason in sorted(refused.items()):
        lines.append(json.dumps({"image": name, "file": str(images[name]), "reason": reason}))
    write_file(path, "".join(f"{line}\n" for line in lines))
    listed = [dataclasses.asdict(record) for _, record in sorted(records.items())]
    index = {"format": FORMAT, "version": VERSION, "settings": dataclasses.asdict(settings), "images": listed}
    write_json(directory / INDEX, index)
    named = {record.shard for record in records.values()}
    for shard in (directory / SHARDS).iterdir():
        if shard.name not in named:
            shard.unlink()


def _file_in(line: str) -> str | None:
    """The file that a line of the manifest names; None where the line is broken, which leaves it as it is."""
    try:
        return os.path.abspath(json.loads(line)["file"])
    except (ValueError, KeyError, TypeError):
        return None


def write_record(directory: Path, record: ImageRecord) -> None:
    write_json(record_path(directory, record.id), dataclasses.asdict(record))


def record_path(directory: Path, name: str) -> Path:
    return directory / RECORDS / f"{hashed(name)}.json"


def hashed(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, values: dict) -> None:
    write_file(path, json.dumps(values) + "\n")
