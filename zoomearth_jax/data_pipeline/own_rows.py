"""Rows of questions.jsonl, the form for questions of one's own (docs/data.md)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from zoomearth_jax.data_pipeline.folder_rows import Problem, Row
from zoomearth_jax.data_pipeline.json_lines import read_json_lines
from zoomearth_jax.data_pipeline.question import LEVELS, Question
from zoomearth_jax.data_pipeline.records import Field, read_fields

NAME = "questions.jsonl"
FIELDS = {
    "image": Field(required=True),
    "question": Field(required=True),
    "answer": Field(required=True),
    "level": Field(required=True),
    "box": Field("four finite numbers or an empty list"),
    "label": Field(),
    "thoughts": Field("a list of two texts"),
    "category": Field(),
    "choices": Field("a list of texts"),
}
_ALIASES = {
    "bbox": "box",
    "bbox2d": "box",
    "boundingbox": "box",
    "filename": "image",
    "groundtruth": "answer",
    "imagename": "image",
    "imagepath": "image",
    "img": "image",
    "options": "choices",
    "text": "question",
    "type": "level",
}


def read_own_rows(directory) -> tuple[list[Row], list[Problem]]:
    """The rows of a folder's questions.jsonl, and what in it is no row.

    Raises:
        UserError: it can't be read as JSON lines.
    """
    rows, faults = [], []
    for number, record, fault in read_json_lines(Path(directory) / NAME):
        where = f"{NAME} line {number}"
        values, said = ({}, [fault]) if fault else read_row(record)
        if said:
            faults += [Problem(one, "refused", where) for one in said]
        else:
            rows.append(Row(where, values.pop("image"), values.pop("question"), given=values.pop("box", ()), **values))
    return rows, faults


def read_row(record: Mapping) -> tuple[dict, list[str]]:
    """A row's fields, and what is wrong with them."""
    values, faults = read_fields(record, FIELDS, _ALIASES, strict=True)
    faults += [f"field {key!r} must not be empty" for key in ("image", "question") if not values.get(key, "-").strip()]
    level = values.get("level", "global")
    if level not in LEVELS:
        close = difflib.get_close_matches(level.strip().lower(), LEVELS, n=1)
        faults.append(
            f"level {level[:40]!r} is none of {', '.join(LEVELS)}" + (f"; did you mean {close[0]!r}?" if close else "")
        )
    return values, faults


def write_questions(path: Path, rows: Sequence[tuple[str, Question]]) -> None:
    """Writes (image file name, question) pairs as JSON lines beside the images; `read_questions` reads them."""
    with open(path, "w", encoding="utf-8") as file:
        for name, q in rows:
            row = {"image": name, "question": q.text, "answer": q.answer, "level": q.level}
            row["box"] = None if q.box is None else [round(c, 2) for c in q.box.corners]
            row |= {"label": q.label, "thoughts": list(q.thoughts)}
            row |= {"category": q.category} if q.category else {}
            row |= {"choices": list(q.choices)} if q.choices else {}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
