"""The records of an evaluation on the disk: appended batch by batch, gone on with after an interruption, merged in order."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax

from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.records import Item, Record
from zoomearth_jax.files import Lock, check_writable, write_file
from zoomearth_jax.runs.saved_steps import together
from zoomearth_jax.runs.start import agreed
from zoomearth_jax.terminal.progress import say

RECORDS = "records.jsonl"
PARTS = "records.part*.jsonl"  # of several processes, until they are merged


class RecordStore:
    """The records of one way of showing crops.

    A single process appends to `records.jsonl`; of several each appends to a part of its own, and the first one merges them,
    sorted by place, when it begins and when it ends. So an evaluation may go on in another number of processes. Where the
    disk takes no more, records stay in memory and `fault` says so.
    """

    def __init__(self, folder: Path | None, items: Sequence[Item], benchmark: str, config: str):
        """Takes nothing from the disk yet.

        Args:
            folder: where records lie, the same for all processes; None keeps them in memory only.
            items: all questions of the benchmark, in the order of its file.
            config: hash of all that decides a prediction.
        """
        self._folder, self._benchmark, self.config = folder, benchmark, config
        self._items = {item.id: (place, item) for place, item in enumerate(items)}
        self._own: list[Record] = []
        self._before: list[Record] = []
        self.fault = ""

    def begin(self, overwrite: bool) -> None:
        """Reads the records that are there, or with `overwrite` removes them. All processes must call it.

        Raises:
            UserError: they are of other settings or other questions.
        """
        if self._folder is not None:
            agreed(lambda: self._remove() if overwrite else self._merge())
            self._before = self._read([self._folder / RECORDS])

    def lacking(self, places: Iterable[int]) -> list[int]:
        """Those of the places whose questions have no prediction yet; images that couldn't be read are tried again."""
        done = {self._items[record.id][0] for record in self._before if not record.fault}
        return [place for place in places if place not in done]

    def append(self, records: Sequence[Record]) -> None:
        """Adds records; they are on the disk when it returns."""
        self._own += records
        if self._folder is None or self.fault:
            return
        several = jax.process_count() > 1
        path = self._folder / (PARTS.replace("*", str(jax.process_index())) if several else RECORDS)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _append(path, "".join(map(_line, records)).encode("utf-8", "backslashreplace"))
        except OSError as error:
            kept = len(self._before) + len(self._own) - len(records)
            self.fault = f"{path}: {error.strerror or error}; it holds {kept:,} questions, the rest is lost"
            say(self.fault)

    def end(self) -> list[Record]:
        """Merges what all processes have played; all records, by place. All processes must call it, and the first gets them."""
        together("played all questions")
        agreed(lambda: None if self.fault else self._merge())
        if self._folder is None or self.fault:
            return self._sorted([*self._before, *self._own])
        return self._read([self._folder / RECORDS])

    def _merge(self) -> None:
        """Brings the records of all files into one, without half-written lines."""
        if self._folder is None:
            return
        whole, parts = self._folder / RECORDS, sorted(self._folder.glob(PARTS))
        if whole.exists() or parts:
            write_file(whole, "".join(map(_line, self._read([whole, *parts]))))
        for part in parts:
            part.unlink()

    def _remove(self) -> None:
        assert self._folder is not None
        for file in [self._folder / RECORDS, *self._folder.glob(PARTS)]:
            file.unlink(missing_ok=True)

    def _read(self, paths: Sequence[Path]) -> list[Record]:
        records = []
        for path in paths:
            for record in _read_records(path) if path.exists() else ():
                self._check(path, record)
                records.append(record)
        return self._sorted(records)

    def _sorted(self, records: Iterable[Record]) -> list[Record]:
        """By place, of each question one: the last one that has a prediction."""
        found: dict[str, Record] = {}
        for record in records:
            if record.id not in found or not record.fault:
                found[record.id] = record
        return sorted(found.values(), key=lambda record: self._items[record.id][0])

    def _check(self, path: Path, record: Record) -> None:
        """Refuses a record that doesn't belong to these settings and questions."""
        out = "--overwrite starts anew, or take another --out"
        if (record.benchmark, record.config) != (self._benchmark, self.config):
            raise UserError(
                f"{path}: records of other settings ({record.benchmark} {record.config}, not {self._benchmark} "
                f"{self.config}); {out}"
            )
        asked = self._items[record.id][1].question if record.id in self._items else None
        if asked is None:
            raise UserError(f"{path}: question {record.id[:100]!r} isn't in the data any more; {out}")
        frame = asked.image.frame
        now = asked.asked, asked.answer, frame.width, frame.height
        if (record.question, record.reference, record.width, record.height) != now:
            raise UserError(f"{path}: question {record.id[:100]!r} or its image has changed since; {out}")


def take_folder(stack: contextlib.ExitStack, out: Path, folders: Sequence[Path], told: bool, what: str) -> None:
    """Takes the lock of a folder for as long as the stack is open, and refuses records in `folders` that are there unless
    `told` what to do with them.

    Args:
        what: the work, such as "an evaluation", for the messages.

    Raises:
        UserError: there are records, another process is at work, or the folder can't be written.
    """
    check_writable(out, directory=True)
    found = [file for folder in folders for file in (folder / RECORDS, *folder.glob(PARTS)) if file.exists()]
    if found and not told:
        raise UserError(
            f"{found[0]}: records of {what}; pass --resume to go on with what they lack, --overwrite to start anew, "
            "or another --out"
        )
    name = what.partition(" ")[2]
    stack.enter_context(Lock(out, f"{out}: another {name} is at work in this folder; wait for its end"))


def _append(path: Path, data: bytes) -> None:
    """Appends to a file whole or not at all, as far as the disk allows."""
    with open(path, "ab") as file:
        size = file.tell()
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def _read_records(path: Path) -> list[Record]:
    """The records of a file, of each question the last; a last line that was cut off is left out.

    Raises:
        UserError: it can't be read, or a line is no record.
    """
    found: dict[str, Record] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.endswith("\n"):
                    record = _record(path, number, line)
                    found[record.id] = record
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    return list(found.values())


def _record(path: Path, number: int, line: str) -> Record:
    try:
        return Record.from_json(json.loads(line))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} line {number}: not a record ({error}); delete the line") from None


def _line(record: Record) -> str:
    return json.dumps(record.to_json(), ensure_ascii=False) + "\n"
