"""Reading official files: where they are, what of their rows can be asked, and what is said of the rest."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.image_folder import ImageFolder
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.images.tiles import expanded
from zoomearth_jax.data_pipeline.questions.folder_rows import OpenImages
from zoomearth_jax.data_pipeline.questions.records import Field, one_line, read_fields
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.benchmarks.benchmark import Opened
from zoomearth_jax.evaluation.records import Item


class RowFault(ValueError):
    """Why a row can't be asked, with the field."""


def find_file(data: Path, names: Sequence[str], where: str) -> Path:
    """The official file: `data` itself, or the first of `names` in the folder that it is.

    Raises:
        UserError: neither is there; it says where one gets it.
    """
    path = expanded(data)
    for file in (path, *(path / name for name in names)):
        if file.is_file():
            return file
    raise UserError(f"{path}: no {' or '.join(names)} there. {where}")


def open_rows(
    name: str, where: str, rows: Iterable[tuple[str, Any, str]], item_of: Callable[[str, Any], Item | None]
) -> Opened:
    """The items of rows, in their order.

    Args:
        name: the file, for the error.
        where: how one gets the right one.
        rows: each with its place, what was read, and what was wrong with that.
        item_of: the item of a row; None where the row belongs to another benchmark. It may raise RowFault or UserError.

    Raises:
        UserError: none can be asked; with the first fault.
    """
    items, faults, total, ids = [], [], 0, set()
    for place, row, fault in rows:
        try:
            if fault:
                raise RowFault(fault)
            item = item_of(place, row)
            if item is not None and item.id in ids:
                raise RowFault(f"id {item.id[:100]!r} is there twice")
        except (RowFault, UserError) as error:
            faults.append(one_line(f"{place}: {error}"))
            total += 1
            continue
        if item is not None:
            ids.add(item.id)
            items.append(item)
            total += 1
    if not items:
        first = f" ({faults[0]})" if faults else ""
        raise UserError(f"{name}: none of {total:,} rows can be asked{first}. {where}")
    return Opened(items, faults, total)


def fields_of(row: Mapping, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The values of a row's fields; those that a row needn't have may be lacking.

    Raises:
        RowFault: a field is missing or of another type.
    """
    values, faults = read_fields(row, fields, {}, strict=False)
    if faults:
        raise RowFault("; ".join(faults))
    return values


class NamedImages:
    """The images of a folder by the names that official rows give them, each opened once.

    Rows may name folders that were left out on unpacking: `LRS_VQA/image/1.tif` is found as `image/1.tif` and `1.tif` too.
    """

    def __init__(self, folder: Path, config: ImageConfig):
        """Opens nothing yet but a tile store's index."""
        self._folder, self._images = folder, OpenImages(ImageFolder(folder, config))

    def __getitem__(self, name: str) -> ImageSource:
        """The image.

        Raises:
            RowFault: it isn't there, or can't be read.
        """
        parts = Path(name).parts
        for start in range(len(parts)):
            found = self._images["/".join(parts[start:])]
            if not isinstance(found, tuple):
                return found
            kind, _, detail = found
            if kind != "image is missing":
                raise RowFault(f"image {name[:200]!r} is refused: {detail}")
        raise RowFault(f"image {name[:200]!r} is missing in {self._folder}")


def choice_letters(choices: Sequence[str]) -> str:
    """The letters of choices: those that they begin with, "(A) …" or "A. …"; else by their places."""
    begins = [found[1] for choice in choices if (found := re.match(r"\s*\(?([A-Z])[).:]", choice))]
    if len(begins) == len(choices):
        return "".join(begins)
    return "ABCDEFGHIJ"[: len(choices)]


def distinct(items: Sequence[Item]) -> list[Item]:
    """The items, with a number after ids that were there before."""
    seen: dict[str, int] = {}
    result = []
    for item in items:
        seen[item.id] = count = seen.get(item.id, 0) + 1
        result.append(item if count == 1 else dataclasses.replace(item, id=f"{item.id} ({count})"))
    return result
