"""Where LRS-GRO's files are and how they are read: JSON lines, and the folders that `datasets.save_to_disk` writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from zoomearth_jax.data_pipeline.lrs_gro import FIELDS, SPLITS, LrsGroRow, normalise, parse_row
from zoomearth_jax.errors import UserError

WHERE_FROM = (
    "LRS-GRO comes from the authors of ZoomEarth (arXiv 2511.12267), https://huggingface.co/datasets/HappyBug/LRS-GRO: put "
    "sft.jsonl, rl.jsonl and test.jsonl (or folders of these names as `datasets` saves them, or LRS-GRO.jsonl with all "
    "splits) into one folder, and the images into its subfolder images/, or `zoomearth tile` them into tiles/; "
    "`zoomearth data check FOLDER` then tells what is there"
)
_ALL = "lrs-gro.jsonl"  # all splits in one file
_MAX_LINE = 1 << 16  # characters; the longest released row has some 5,000


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


def read_split(path, split: str) -> list[LrsGroRow]:
    """A split's rows as released, in order. Of a file with all splits, those that name this one.

    Raises:
        UserError: nothing there for the split, or a row is broken.
    """
    source = find_rows(path, split)
    if source is None:
        raise UserError(f"{path}: no rows of LRS-GRO for split {split!r}. {WHERE_FROM}")
    rows = list(_read(source))
    named = _named(rows)
    if len(named) > 1 or source.name.lower() == _ALL:
        rows = [row for row in rows if _split(row) == split]
    if not rows:
        raise UserError(f"{source}: no rows of split {split!r}; it has {', '.join(named) or 'none at all'}")
    return rows


def read_all(path) -> dict[str, list[LrsGroRow]]:
    """Rows of every split that is there, by split.

    Raises:
        UserError: nothing of LRS-GRO there, or a row is broken.
    """
    sources = {split: source for split in SPLITS if (source := find_rows(path, split))}
    if not sources:
        raise UserError(f"{path}: no rows of LRS-GRO. {WHERE_FROM}")
    if len({*sources.values()}) == 1 < len(sources):  # one file for all
        rows = list(_read(sources["rl"]))
        named = _named(rows)
        if len(named) < 2:
            return {named[0] if named else "rows": rows}
        return {split: [row for row in rows if _split(row) == split] for split in named}
    return {split: read_split(path, split) for split in sources}


def _split(row: LrsGroRow) -> str | None:
    return row.split and row.split.strip().lower()


def _named(rows: Sequence[LrsGroRow]) -> list[str]:
    """The splits that rows name, in order."""
    return [split for split in dict.fromkeys(map(_split, rows)) if split]


def _read(source: Path) -> Iterator[LrsGroRow]:
    return _read_saved(source) if source.is_dir() else _read_lines(source)


def _read_lines(file: Path) -> Iterator[LrsGroRow]:
    try:
        with open(file, encoding="utf-8") as lines:
            number = 0
            while line := lines.readline(_MAX_LINE):
                number += 1
                where = f"{file} line {number}"
                if len(line) == _MAX_LINE:
                    raise UserError(f"{where}: over {_MAX_LINE:,} characters; one row of JSON a line")
                if line.strip():
                    yield parse_row(_json(line, where), where)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable text file ({error})") from None


def _json(text: str, where: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None


def _read_saved(folder: Path) -> Iterator[LrsGroRow]:
    """Rows of a folder by `datasets.Dataset.save_to_disk`: state.json names Arrow streams.

    Other columns, such as images, are not read.
    """
    import pyarrow as pa  # 0.1 s that only this form costs

    state = _json((folder / "state.json").read_text(encoding="utf-8", errors="replace"), f"{folder}/state.json")
    try:
        files = [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise UserError(f"{folder}/state.json: no list _data_files; not a folder saved by `datasets`") from None
    number = 0
    for file in files:
        try:
            with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
                for batch in stream:
                    known = batch.select([name for name in batch.schema.names if name in FIELDS])
                    known.validate(full=True)  # texts and offsets of a broken or hostile file may be anything
                    for record in known.to_pylist():
                        number += 1
                        yield parse_row(record, f"{file} row {number}")
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file}: not a readable Arrow stream ({str(error).splitlines()[0]})") from None


def manifest(rows: Sequence[LrsGroRow]) -> dict:
    """What a split consists of: its keys (image, question) in order, and a hash over keys, answers and boxes.

    Ids aren't in it: they differ between released files.
    """
    cleaned = [normalise(row) for row in rows]
    content = sorted(json.dumps([*row.key, row.ground_truth, row.bbox], ensure_ascii=False) for row in cleaned)
    digest = hashlib.sha256("\n".join(content).encode()).hexdigest()
    return {"format": 1, "rows": len(rows), "sha256": digest, "keys": [list(row.key) for row in cleaned]}
