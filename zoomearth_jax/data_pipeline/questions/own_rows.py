"""Rows of questions.jsonl, the form for questions of one's own (docs/data.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.data_pipeline.questions.folder_rows import GivenLook, Problem, Row
from zoomearth_jax.data_pipeline.questions.json_lines import read_json_lines
from zoomearth_jax.data_pipeline.questions.question import LEVELS, Look, Question
from zoomearth_jax.data_pipeline.questions.records import Field, read_fields, short
from zoomearth_jax.errors import suggestion

NAME = "questions.jsonl"
FIELDS = {
    "image": Field(required=True),
    "question": Field(required=True),
    "answer": Field(required=True),
    "level": Field(required=True),
    "box": Field("four finite numbers or an empty list"),
    "geometry": Field("an object"),
    "label": Field(),
    "thoughts": Field("a list of two texts"),
    "looks": Field("a list of objects"),
    "thought": Field(),
    "category": Field(),
    "choices": Field("a list of texts"),
    "boxes": Field("a list of boxes, four finite numbers each"),
}
LOOK_FIELDS = {
    "box": Field("four finite numbers or an empty list"),
    "geometry": Field("an object"),
    "label": Field(),
    "thought": Field(),
    "source": Field(),
    "context": Field("a finite number"),
}
SOURCES = ("overview", "picture")  # what a box may be named on
MOST_CONTEXT = 1000
_TWICE = "give 'box', in px, or 'geometry', not both"
_ALIASES = {
    "bbox": "box",
    "bbox2d": "box",
    "boundingbox": "box",
    "filename": "image",
    "geojson": "geometry",
    "geom": "geometry",
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
            rows.append(Row(where, values.pop("image"), values.pop("question"), **values))
    return rows, faults


def read_row(record: Mapping) -> tuple[dict, list[str]]:
    """What a `Row` takes of a row, and what is wrong with it.

    A question with one look may have `box`, `label` and `thoughts` (before the look, before the answer) in place of `looks`
    and `thought`. In place of a box, in px, a look may have a GeoJSON `geometry`.
    """
    values, faults = read_fields(record, FIELDS, _ALIASES, strict=True)
    values, more = _with_looks(values)
    faults += more
    faults += [f"field {key!r} must not be empty" for key in ("image", "question") if not values.get(key, "-").strip()]
    level = values.get("level", "global")
    if level not in LEVELS:
        hint = suggestion(level.strip().lower(), LEVELS, "")
        faults.append(f"level {level[:40]!r} is none of {', '.join(LEVELS)}" + (hint and f"; {hint}"))
    return values, faults


def _with_looks(values: dict) -> tuple[dict, list[str]]:
    """The values with `looks` and `thought` only, and what is wrong with them."""
    box, geometry = values.pop("box", ()), values.pop("geometry", None)
    label, (before, after) = values.pop("label", ""), values.pop("thoughts", ("", ""))
    given, faults, looks = values.pop("looks", ()), [], []
    if not given:
        if "thought" in values:
            faults.append("field 'thought' goes with 'looks'; did you mean 'thoughts'?")
        looks = [GivenLook(box, label, before, geometry)] if box or geometry else []
        values["thought"] = after if looks else before or after
        faults += [_TWICE] if box and geometry else []
    elif box or geometry or label or before or after:
        faults.append(
            "field 'looks' doesn't go with 'box', 'geometry', 'label' and 'thoughts', which are for one look; use 'thought'"
        )
    for number, record in enumerate(given, 1):
        one, said = read_fields(record, LOOK_FIELDS, _ALIASES, strict=True)
        box, geometry = one.get("box"), one.get("geometry")
        said += ["field 'box' must not be empty"] if box == () else []
        if not said and box is None and geometry is None and "context" not in one:
            said.append(
                f"field 'box' is {'null' if 'box' in record else 'missing'}; it must be {LOOK_FIELDS['box'].kind}"
            )
        said += [_TWICE] if box and geometry else []
        said += _chain_faults(one, number)
        faults += [f"look {number}: {fault}" for fault in said]
        context = one.get("context", 0.0)
        source: Any = "context" if context else one.get("source", "overview")
        looks.append(GivenLook(box or (), one.get("label", ""), one.get("thought", ""), geometry, source, context))
    return values | {"looks": tuple(looks)}, faults


def _chain_faults(look: Mapping, number: int) -> list[str]:
    """What is wrong with how a look goes on from the look before it."""
    faults = []
    if look.get("source", "overview") not in SOURCES:
        faults.append(f"field 'source' must be {' or '.join(SOURCES)}, not {short(look['source'])}")
    if "context" in look and not 1 < look["context"] <= MOST_CONTEXT:
        faults.append(f"field 'context' must be above 1, and at most {MOST_CONTEXT}, not {short(look['context'])}")
    if "context" in look and {"box", "geometry", "source"} & look.keys():
        faults.append(
            "field 'context' is a wider view of the last picture's place; it doesn't go with 'box', 'geometry' and 'source'"
        )
    if number == 1 and (look.get("source") == "picture" or "context" in look):
        faults.append("there is no picture yet that it could go on from; give a box on the overview")
    return faults


def write_questions(path: Path, rows: Sequence[tuple[str, Question]]) -> None:
    """Writes (image file name, question) pairs as JSON lines beside the images; `read_questions` reads them."""
    with open(path, "w", encoding="utf-8") as file:
        for name, q in rows:
            row: dict[str, Any] = {"image": name, "question": q.text, "answer": q.answer, "level": q.level}
            looks = [_written(look) for look in q.looks]
            if len(looks) > 1:
                row |= {"looks": looks, "thought": q.thought}
            else:
                one = looks[0] if looks else {"box": None, "label": "", "thought": q.thought}
                row |= one | {"thoughts": [one.pop("thought"), q.thought if looks else ""]}
            row |= {"category": q.category} if q.category else {}
            row |= {"choices": list(q.choices)} if q.choices else {}
            row |= {"boxes": [_corners(box) for box in q.boxes]} if q.boxes else {}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _written(look: Look) -> dict:
    place: dict[str, Any] = {"box": _corners(look.box)}
    if look.source != "overview":
        place = {"context": look.context} if look.source == "context" else place | {"source": look.source}
    return place | {"label": look.label, "thought": look.thought}


def _corners(box: Box) -> list[float]:
    return [round(c, 2) for c in box.corners]
