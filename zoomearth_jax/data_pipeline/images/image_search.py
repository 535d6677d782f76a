"""Which files of a folder are images, under which names, and why the others are passed over."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zoomearth_jax.data_pipeline.images.decoding import SUFFIXES
from zoomearth_jax.data_pipeline.images.tiles import STORE_FILES, STORE_FOLDERS, expanded
from zoomearth_jax.errors import UserError

KINDS = "TIFF, PNG, JPEG, WebP, JPEG 2000, VRT, ENVI, ERDAS or NITF"
SIDECAR = "a sidecar file"
_SIDECARS = re.compile(
    r".*\.(aux|aux\.xml|hdr|ige|imd|msk|ovr|prj|rpb|rpc|rrd|tfw|tifw|pgw|pngw|jgw|jpgw|j2w|jp2w|wld)", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        images: path -> name: the path inside the folder that was searched, "/" between subfolders; of a file that was given
            singly, its own name.
        passed_over: path -> why, of everything else in the folders.
    """

    images: dict[Path, str]
    passed_over: dict[Path, str]


def find_images(places: Sequence[Path], store: Path | None = None) -> Found:
    """The files among `places`, and the images in the folders among them; each once, sorted by path.

    A file that is met in several ways keeps the way without links, then that with the longest name. Hidden files and folders
    and the files of tile stores are passed over; links to folders are followed.

    Args:
        store: a tile store whose files aren't mentioned.

    Raises:
        UserError: nothing given, nothing there, or a folder without images.
    """
    if not places:
        raise UserError("tile: give image files or folders of them")
    found: dict[str, tuple[bool, int, Path, str]] = {}  # real folder and own name -> how it was met
    passed_over: dict[Path, str] = {}
    for place in map(expanded, places):
        count = 0
        is_dir = _is_dir(place)
        for path, real, why in _walk(place, store) if is_dir else [_single(place)]:
            if why:
                passed_over[path] = why
                continue
            name = path.relative_to(place).as_posix() if is_dir else path.name
            met = (os.path.abspath(path) == real, len(name), path, name)
            found[real] = max(found.get(real, met), met)
            count += 1
        if not count:
            raise UserError(f"{place}: holds no {KINDS} files{_examples(place, passed_over)}")
    images = {path: name for _, _, path, name in sorted(found.values(), key=lambda met: met[2])}
    return Found(images, dict(sorted(passed_over.items())))


def _is_dir(place: Path) -> bool:
    try:
        place.stat()
        return place.is_dir()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{place}: no such file or folder") from None
    except OSError as error:
        raise UserError(f"{place}: can't be read ({error.strerror})") from None


def _examples(place: Path, passed_over: dict[Path, str]) -> str:
    names = [str(path.relative_to(place)) for path in passed_over if place in path.parents]
    more = ", ..." if len(names) > 3 else ""
    return f" by their names, but {len(names)} others: {', '.join(names[:3])}{more}" if names else ""


def _single(path: Path) -> tuple[Path, str, str]:
    """A file as it is given; of ENVI's two, the one with the pixels."""
    if path.suffix.lower() == ".hdr":
        with os.scandir(path.parent) as entries:
            data = _envi_data(path.parent, {entry.name: entry for entry in entries}).get(path.name, path.name)
        path = path.with_name(data)
    return path, os.path.join(os.path.realpath(path.parent), path.name), ""


def _walk(place: Path, store: Path | None) -> Iterator[tuple[Path, str, str]]:
    """(path, real folder and own name, why it is passed over or "") of everything below a folder."""
    store_place = os.path.realpath(store) if store else ""
    todo: list[tuple[Path, tuple[str, ...]]] = [(place, (os.path.realpath(place),))]
    while todo:
        folder, chain = todo.pop()
        try:
            with os.scandir(folder) as listed:
                entries = {entry.name: entry for entry in sorted(listed, key=lambda entry: entry.name)}
        except OSError as error:
            yield folder, chain[-1], f"can't be read ({error.strerror})"
            continue
        if chain[-1] == store_place or entries.keys() >= STORE_FOLDERS:
            entries = {name: entry for name, entry in entries.items() if name not in STORE_FILES | STORE_FOLDERS}
            if chain[-1] != store_place:
                yield folder, chain[-1], "a tile store"
        data = set(_envi_data(folder, entries).values())
        for name, entry in entries.items():
            path, real = folder / name, os.path.join(chain[-1], name)
            if _is(entry.is_dir) and not name.startswith("."):
                inner = os.path.realpath(path) if entry.is_symlink() else real
                if inner in chain or chain[0].startswith(inner.rstrip(os.sep) + os.sep):
                    yield path, real, "a link to a folder above it"
                else:
                    todo.append((path, (*chain, inner)))
            else:
                yield path, real, _why_not(entry, data)


def _why_not(entry: os.DirEntry, data: set[str]) -> str:
    """Why a directory's entry is no image to read; "" if it is one by its name."""
    name, suffix = entry.name, os.path.splitext(entry.name)[1].lower()
    if name.startswith("."):
        return "hidden"
    if not _is(entry.is_file):
        return "a broken link" if entry.is_symlink() else "not a file"
    if suffix in SUFFIXES or name in data:
        return ""
    return SIDECAR if _SIDECARS.fullmatch(name) else "not an image by its name"


def _envi_data(folder: Path, entries: dict[str, os.DirEntry]) -> dict[str, str]:
    """ENVI's headers (NAME.hdr) among a folder's entries -> the file with the pixels.

    That is NAME, or the largest of the files NAME.*.
    """
    headers = [name for name in entries if name.lower().endswith(".hdr") and _starts_with_envi(folder / name)]
    by_stem: dict[str, list[str]] = {}
    for name in entries if headers else ():
        stem = os.path.splitext(name)[0]
        if not _SIDECARS.fullmatch(name) and _is(entries[name].is_file):
            by_stem.setdefault(stem, []).append(name)
    found = {}
    for header in headers:
        stem = os.path.splitext(header)[0]
        beside = by_stem.get(stem, []) if stem not in entries or not _is(entries[stem].is_file) else [stem]
        if beside:
            found[header] = max(beside, key=lambda name: entries[name].stat().st_size)
    return found


def _is(kind: Callable[[], bool]) -> bool:
    """`entry.is_dir` or `entry.is_file`; a link that leads nowhere is neither."""
    try:
        return kind()
    except OSError:
        return False


def _starts_with_envi(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"ENVI"
    except OSError:
        return False
