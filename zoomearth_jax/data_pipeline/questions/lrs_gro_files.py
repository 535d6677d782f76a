"""Where LRS-GRO's files are and how they are read: JSON lines, and the folders that `datasets.save_to_disk` writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from zoomearth_jax.data_pipeline.questions.json_lines import parse_object, read_json_lines
from zoomearth_jax.data_pipeline.questions.lrs_gro import FIELDS, SPLITS, LrsGroRow, read_row
from zoomearth_jax.data_pipeline.questions.records import refuse
from zoomearth_jax.errors import UserError

WHERE_FROM = (
    "LRS-GRO comes from the authors of ZoomEarth (arXiv 2511.12267), https://huggingface.co/datasets/HappyBug/LRS-GRO "
    "(`hf download HappyBug/LRS-GRO --repo-type dataset --local-dir FOLDER`): put "
    "sft.jsonl, rl.jsonl and test.jsonl (or folders of these names as `datasets` saves them, or LRS-GRO.jsonl with all "
    "splits) into one folder, and the images into its subfolder images/, or `zoomearth tile` them into tiles/; "
    "`zoomearth data check FOLDER` then tells what is there"
)
_ALL = "lrs-gro.jsonl"  # all splits in one file


def find_rows(path, split: str) -> Path | None:
    """The file or folder that holds a split's rows; None if there is none.

    Args:
        path: a .jsonl file or a folder saved by `datasets`, taken as it is; or a folder that holds {split}.jsonl, a saved
            folder {split} (a saved DatasetDict has them), or LRS-GRO.jsonl with all splits. Case doesn't count.
    """
    path = Path(path)
    if path.is_file() or _is_saved(path):
        return path
    entries = {entry.name.lower(): entry for entry in path.iterdir()} if path.is_dir() else {}
    file, folder = entries.get(f"{split}.jsonl"), entries.get(split)
    if file is None and folder is not None and _is_saved(folder):
        return folder
    return file or entries.get(_ALL)


def images_of(path) -> Path:
    """The folder where a split's images are: the one that holds the rows, or `path` itself."""
    path = Path(path)
    has_images = (path / "images").is_dir() or (path / "tiles").is_dir()
    alone = path.is_file() or (_is_saved(path) and not has_images)
    return path.parent if alone else path


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file()


class Read(NamedTuple):
    """What a file holds: rows as released, each with file and line; and where and what is no row."""

    rows: list[tuple[str, LrsGroRow]]
    faults: list[tuple[str, str]]


def find_split(path, split: str) -> Read:
    """A split's rows as released, in order. Of a file with all splits, those that name this one, and all that is no row.

    Raises:
        UserError: nothing there for the split.
    """
    source = find_rows(path, split)
    if source is None:
        raise UserError(f"{path}: no rows of LRS-GRO for split {split!r}. {WHERE_FROM}")
    read = _read(source)
    named = _named(read)
    if len(named) > 1 or source.name.lower() == _ALL:
        read = _of_split(read, split)
    if not any(read):
        raise UserError(f"{source}: no rows of split {split!r}; it has {', '.join(named) or 'none at all'}")
    return read


def find_all(path) -> dict[str, Read]:
    """Rows of every split that is there, by split; as `find_split` gives them.

    Raises:
        UserError: nothing of LRS-GRO there.
    """
    sources = {split: source for split in SPLITS if (source := find_rows(path, split))}
    if not sources:
        raise UserError(f"{path}: no rows of LRS-GRO. {WHERE_FROM}")
    if len({*sources.values()}) == 1 < len(sources):  # one file for all
        read = _read(sources["rl"])
        named = _named(read)
        if len(named) < 2:
            return {named[0] if named else "rows": read}
        return {split: _of_split(read, split) for split in named}
    return {split: find_split(path, split) for split in sources}


def read_split(path, split: str) -> list[LrsGroRow]:
    """The rows of `find_split`.

    Raises:
        UserError: nothing there for the split, or anything there that is no row.
    """
    return _all_rows(path, find_split(path, split))


def read_all(path) -> dict[str, list[LrsGroRow]]:
    """The rows of `find_all`.

    Raises:
        UserError: nothing of LRS-GRO there, or anything there that is no row.
    """
    return {split: _all_rows(path, read) for split, read in find_all(path).items()}


def _all_rows(path, read: Read) -> list[LrsGroRow]:
    refuse(path, [f"{where}: {said}" for where, said in read.faults])
    return [row for _, row in read.rows]


def _of_split(read: Read, split: str) -> Read:
    return Read([(where, row) for where, row in read.rows if _split(row) == split], read.faults)


def _split(row: LrsGroRow) -> str | None:
    return row.split and row.split.strip().lower()


def _named(read: Read) -> list[str]:
    """The splits that rows name, in order."""
    return [split for split in dict.fromkeys(_split(row) for _, row in read.rows) if split]


def _read(source: Path) -> Read:
    """Reads JSON lines, or a saved folder."""
    read = Read([], [])
    records = _saved_records(source) if source.is_dir() else _line_records(source)
    for where, record, fault in records:
        row, faults = (None, [fault]) if fault else read_row(record)
        if row is not None:
            read.rows.append((where, row))
        read.faults.extend((where, said) for said in faults)
    return read


def _line_records(file: Path) -> Iterator[tuple[str, dict, str]]:
    return ((f"{file.name} line {number}", record, fault) for number, record, fault in read_json_lines(file))


def _saved_records(folder: Path) -> Iterator[tuple[str, dict, str]]:
    """Rows of a folder by `datasets.Dataset.save_to_disk`: state.json names Arrow streams.

    Other columns, such as images, are not read.
    """
    import pyarrow as pa  # 0.1 s that only this form costs

    number = 0
    for file in _arrow_files(folder):
        try:
            with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
                for batch in stream:
                    known = batch.select([name for name in batch.schema.names if name in FIELDS])
                    known.validate(full=True)  # texts and offsets of a broken or hostile file may be anything
                    for record in known.to_pylist():
                        number += 1
                        yield f"{file.name} row {number}", record, ""
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file}: not a readable Arrow stream ({str(error).splitlines()[0]})") from None


def _arrow_files(folder: Path) -> list[Path]:
    file = folder / "state.json"
    try:
        state = parse_object(file.read_text(encoding="utf-8", errors="surrogateescape"))
        return [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise UserError(f"{file}: no list _data_files; not a folder saved by `datasets`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}") from None
