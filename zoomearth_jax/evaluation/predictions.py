"""Reads predictions to score them again: our records, lmms-eval's samples, the released code's results, and rows like those."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoomearth_jax.data_pipeline.questions.json_lines import read_json_rows
from zoomearth_jax.data_pipeline.questions.records import Field, one_line, read_fields, short
from zoomearth_jax.data_pipeline.text.protocol import parse_answer
from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.evaluation.records import Record

_BOX = Field("four finite numbers or an empty list")
OWN = {
    **{name: Field(required=True) for name in ("benchmark", "id", "reference")},
    **{name: Field() for name in ("config", "image", "question", "level", "category", "output", "answer", "box_reason", "fault")},
    **{name: _BOX for name in ("box", "window", "reference_box", "reference_window")},
    "choices": Field("a list of texts"),
    "turns": Field("a list of objects"),
    "truncated": Field("true or false"),
}  # fmt: skip
# What rows of other programs call it, in the order in which a row is searched.
ALIASES = {
    "id": ("question_id", "Question_id", "id", "index", "doc_id"),
    "question": ("question", "prompt", "Text"),
    "reference": ("ground_truth", "Ground truth", "reference", "answer", "target", "gt"),
    "output": ("output", "prediction", "pred", "response", "text", "answer2"),
    "category": ("category", "Category"),
    "level": ("type", "level"),
    "image": ("image", "image_name", "Image"),
    "choices": ("options", "choices", "Answer choices", "multi-choice options"),
    "box": ("box", "bbox"),
    "reference_box": ("bbox_ref", "reference_box"),
}
_TASKS = {
    "xlrs-lite": "xlrs-bench",
    "xlrs": "xlrs-bench",
    "mmerealworld": "mme-realworld-rs",
    "mme_realworld": "mme-realworld-rs",
}
_RELEASED = ("answer1", "answer2", "stage1")
_SCALE = 2  # from px of the released code's boxes (512 px view) to those of its references (1024 px)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What files hold.

    Attributes:
        records: in the order of the files; of the same question the last one.
        without: what the model answered before its crop, where the rows say it.
        faults: one line for each row that can't be scored, with file, row and field.
        repeated: rows whose question came again later.
    """

    records: list[Record]
    without: list[Record]
    faults: list[str]
    repeated: int


def read_predictions(
    files: Sequence[Path], benchmark: str | None = None, fields: Mapping[str, str] | None = None
) -> Predictions:
    """Reads files of JSON lines, or of one JSON list each.

    Args:
        benchmark: of rows that don't say it; of our own records only those of it are taken.
        fields: what the rows call a key of ALIASES, where it isn't one of the names there.

    Raises:
        UserError: a file that can't be read, no row that can be scored, or rows of several benchmarks or settings.
    """
    unknown = [name for name in fields or () if name not in ALIASES]
    if unknown:
        raise UserError(f"fields: {unknown[0]!r} is unknown; {suggestion(unknown[0], ALIASES)}")
    found: dict[tuple, tuple[Record, Record | None]] = {}
    faults, count = [], 0
    for file in map(Path, files):
        for line in read_json_rows(file):
            try:
                if line.fault:
                    raise ValueError(line.fault)
                pair = _read(line.record, f"{file} row {line.number}", file, benchmark, fields or {})
            except ValueError as error:
                faults.append(one_line(f"{file.name} row {line.number}: {error}"))
                continue
            if pair is not None:
                count += 1
                found.pop(pair[0].key, None)
                found[pair[0].key] = pair
    records = [record for record, _ in found.values()]
    _check(files, records, faults)
    return Predictions(records, [first for _, first in found.values() if first], faults, count - len(records))


def _check(files: Sequence[Path], records: Sequence[Record], faults: Sequence[str]) -> None:
    names = ", ".join(str(file) for file in files)
    if not records:
        raise UserError(f"{names}: no row can be scored" + (f"; {faults[0]}" if faults else ""))
    for what, known, hint in (
        ("benchmarks", sorted({r.benchmark for r in records}), "choose one by --benchmark"),
        ("settings", sorted({r.config for r in records}), "give the files of one run at a time"),
    ):
        if len(known) > 1:
            raise UserError(f"{names}: predictions of {len(known)} {what} ({', '.join(known)[:200]}); {hint}")


def _read(
    row: Mapping, place: str, file: Path, benchmark: str | None, fields: Mapping[str, str]
) -> tuple[Record, Record | None] | None:
    """A row's record, and what was answered before the crop; None where the row isn't of the benchmark.

    Raises:
        ValueError: it can't be scored.
    """
    if "benchmark" in row and "turns" in row:
        record = _own(row)
        return None if benchmark not in (None, record.benchmark) else (record, None)
    if "filtered_resps" in row or "resps" in row:
        logged = _lmms(row, place, benchmark or _task(file))
        return None if logged is None else (logged, None)
    return _plain(row, place, benchmark, fields)


def _own(row: Mapping) -> Record:
    row = {key: value for key, value in row.items() if value is not None}
    _, faults = read_fields(row, OWN, {}, strict=False)
    if not isinstance(row.get("extra", {}), dict):
        faults.append("field 'extra' must be an object")
    if faults:
        raise ValueError("; ".join(faults))
    boxes = {name: row[name] or None for name in ("box", "window", "reference_box", "reference_window") if name in row}
    return Record.from_json(row | boxes)


def _task(file: Path) -> str:
    """The benchmark of lmms-eval's task, whose name is in the file's."""
    task = file.stem.rpartition("samples_")[2]
    for name, benchmark in _TASKS.items():
        if task.lower().startswith(name):
            return benchmark
    raise UserError(f"{file}: of which benchmark is lmms-eval's task {task!r}? Say it by --benchmark")


def _lmms(row: Mapping, place: str, benchmark: str) -> Record | None:
    """A line of lmms-eval's `…_samples_TASK.jsonl`. It has no document; category and answer are in what the task scored."""
    given = row.get("doc")
    doc = given if isinstance(given, dict) else {}
    scored = next((v for v in row.values() if isinstance(v, dict) and {"pred_answer", "answer"} <= v.keys()), {})
    output = row.get("filtered_resps") or row.get("resps")
    while isinstance(output, list) and output:
        output = output[0]
    if not isinstance(output, str):
        raise ValueError(f"field 'filtered_resps' holds no text, but {short(output)}")
    reference = scored.get("answer", row.get("target"))
    if not isinstance(reference, str):
        raise ValueError("field 'target' is missing")
    where, kind = scored.get("sub_category"), scored.get("task_category")
    if benchmark == "mme-realworld-rs":
        if (where or str(doc.get("category", "")).rpartition("/")[2]) != "Remote Sensing":
            return None
        category = kind or doc.get("l2-category", "")
    else:
        category = f"{scored['category']}/{where}" if where and "category" in scored else doc.get("category", "")
    asked = row.get("input")
    asked = asked[0] if isinstance(asked, list) and asked else asked
    return Record(
        benchmark=benchmark,
        id=str(scored.get("question_id", doc.get("index", row.get("doc_id", place)))),
        question=asked if isinstance(asked, str) else "",
        reference=reference,
        category=str(category),
        choices=tuple(re.findall(r"^\([A-E]\).*$", asked, re.MULTILINE)) if isinstance(asked, str) else (),
        output=output,
        answer=parse_answer(output),
        turns=({"text": output},),
    )


def _plain(
    row: Mapping, place: str, benchmark: str | None, fields: Mapping[str, str]
) -> tuple[Record, Record | None] | None:
    """A row of the released code's results, or of any program that writes answers beside references."""
    released = all(name in row for name in _RELEASED)
    benchmark = benchmark or ("lrs-gro" if released else "mme-realworld-rs" if "Question_id" in row else None)
    if benchmark is None:
        raise ValueError("doesn't say of which benchmark it is; say it by --benchmark")
    if benchmark == "mme-realworld-rs" and row.get("Subtask", "Remote Sensing") != "Remote Sensing":
        return None
    values = {key: _value(row, key, fields) for key in ALIASES}
    said = {
        key: values[key] if isinstance(values[key], str) else "" for key in ("image", "question", "level", "category")
    }
    record = Record(
        benchmark=benchmark,
        id=str(values["id"] if values["id"] is not None else place),
        reference=_must("reference", values["reference"], fields),
        choices=tuple(map(str, values["choices"])) if isinstance(values["choices"], list) else (),
        reference_box=_box(values["reference_box"], 1),
        image=said["image"],
        question=said["question"],
        level=said["level"] or "global",
        category=said["category"],
    )
    return _released(record, row) if released else (_answered(record, row, values, fields), None)


def _answered(record: Record, row: Mapping, values: Mapping[str, Any], fields: Mapping[str, str]) -> Record:
    """The record of a question with what a program wrote: a whole output, or a bare answer."""
    output = values["output"]
    if output is None and values["reference"] is not row.get(
        "answer"
    ):  # `answer` is the reference where nothing else is
        output = row.get("answer")
    output = _must("output", output, fields)
    answer, box = parse_answer(output), _box(values["box"], 1)
    if answer is None and "<" not in output:  # bare, as most programs write it
        answer = output.strip() or None
    reason = "" if box else "absent"
    return dataclasses.replace(
        record, turns=({"text": output},), output=output, answer=answer, box=box, box_reason=reason
    )


def _released(record: Record, row: Mapping) -> tuple[Record, Record]:
    """The records after and before the crop. Where the second turn gives no answer, the first one's counts."""
    first, last = _text(row, "stage1"), _text(row, "stage2")
    before, box = _text(row, "answer1") or None, _box(row.get("bbox"), _SCALE)
    record = dataclasses.replace(record, box=box, box_reason="" if box else "absent")
    alone = dataclasses.replace(record, turns=({"text": first},), output=first, answer=before)
    if not last:
        return alone, alone
    looked = {
        "text": first,
        "box": box,
        "window": None,
    }  # which window is not known, since the image's size isn't there
    answer = _text(row, "answer2") or before
    return dataclasses.replace(record, turns=(looked, {"text": last}), output=last, answer=answer), alone


def _must(key: str, value: Any, fields: Mapping[str, str]) -> str:
    if isinstance(value, str):
        return value
    names = fields.get(key) or " or ".join(ALIASES[key][:5])
    raise ValueError(f"field {names} " + ("is missing" if value is None else f"must be a text, not {short(value)}"))


def _value(row: Mapping, key: str, fields: Mapping[str, str]) -> Any:
    names = (fields[key],) if key in fields else ALIASES[key]
    return next((row[name] for name in names if row.get(name) is not None), None)


def _text(row: Mapping, name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"field {name!r} must be a text, not {short(value)}")
    return value or ""


def _box(value: Any, scale: float) -> tuple[float, ...] | None:
    """Four numbers, or the first four of a list of boxes; None for what is none."""
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    _, faults = read_fields({"box": value}, {"box": _BOX}, {}, strict=True)
    return tuple(float(corner) * scale for corner in value) if value and not faults else None
