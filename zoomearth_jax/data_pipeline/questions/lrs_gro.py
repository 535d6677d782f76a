"""Rows of LRS-GRO (ZoomEarth, arXiv 2511.12267): typed validated, and their noise normalised.

A row is read as it is (`read_row`), written back as it was (`LrsGroRow.to_dict`), and cleaned in one place (`normalise`).
`lrs_gro_files` finds and reads the files, `folder_rows` judges what becomes of a row (`to_row`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

from zoomearth_jax.data_pipeline.questions.folder_rows import GivenLook, Row
from zoomearth_jax.data_pipeline.questions.records import Field, read_fields, short

SPLITS = ("sft", "rl", "test")
CATEGORIES = {  # level -> the paper's 17 types; Counting is global where there is no box
    "global": ("Counting", "Season", "Urban-Rural", "Scene Type"),
    "region": (
        "Counting",
        "Object existence",
        "Region status",
        "Other visual features",
        "Region function",
        "Object category",
    ),
    "object": (
        "Object function / usage",
        "Object material / surface",
        "Object category refinement",
        "Object state / motion / activity",
        "Object relative position / context",
        "Object shape / structure",
        "Object color / pattern",
    ),
}
STRAYS = (  # labels outside the 17 on global questions of the RL rows; all ask about the scene as a whole
    "Attribute",
    "Function",
    "Infrastructure Presence",
    "Localization",
    "Scene Comparison",
    "Scene Composition",
    "Scene Feature",
)


def _spelling(category: str) -> str:
    return re.sub(r"[\W_]+", " ", category).strip().casefold()


_CANONICAL = {_spelling(name): name for names in CATEGORIES.values() for name in names}
_CANONICAL |= {_spelling(name): "Scene Type" for name in STRAYS}


@dataclasses.dataclass(frozen=True)
class LrsGroRow:
    """One question as it was released.

    Attributes:
        question_id: differs between released files: `key` is what identifies a row.
        image_name: file name of the image.
        category: one of CATEGORIES, or noise.
        question, ground_truth: the text and its answer.
        bbox: x1, y1, x2, y2 in px of the image shrunk to a longest side of 1024 px; empty where there is none.
        type: level; older files lack it (see `level`).
        split: sft, rl or test, in any case.
        higher_level: the paper's skill: perception, reasoning, ...
        label: what the box shows.
        cut: whether the reference reply asks for a crop; of fine-tuning rows.
        overview: the field `global`, a description of the whole image.
        stage_1_reasoning, stage_2_reasoning: before and after the crop; the last 11 fine-tuning rows lack them.
        scale: longest side / 1024; 1 in rows without a box.
    """

    question_id: str
    image_name: str
    category: str
    question: str
    ground_truth: str
    bbox: tuple[float, ...] = ()
    type: str | None = None
    split: str | None = None
    higher_level: str | None = None
    label: str | None = None
    cut: bool | None = None
    overview: str | None = None
    stage_1_reasoning: str | None = None
    stage_2_reasoning: str | None = None
    scale: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """(image, question): what identifies a row across files."""
        return self.image_name, self.question

    @property
    def level(self) -> str:
        """`type`, or what category and box say where a file lacks it."""
        if self.type:
            return self.type
        if not self.bbox:
            return "global"
        return "region" if self.category in CATEGORIES["region"] else "object"

    @property
    def needs_crop(self) -> bool:
        """Whether the reference reply looks at the box; a fine-tuning row can say no by `cut`."""
        return bool(self.bbox) and self.cut is not False

    def to_dict(self) -> dict:
        """The row as it was read, with a bbox in any case and without nulls."""
        values = {key: getattr(self, name) for key, name in _NAMES.items()}
        return {key: value for key, value in (values | {"bbox": list(self.bbox)}).items() if value is not None}


_KEYS = {"overview": "global"}  # `global` is a word of Python's own
_KINDS = {
    "str": Field(required=True),
    "str | None": Field(),
    "float | None": Field("a finite number"),
    "bool | None": Field("true or false"),
    "tuple[float, ...]": Field("four finite numbers or an empty list"),
}
_NAMES = {_KEYS.get(field.name, field.name): field.name for field in dataclasses.fields(LrsGroRow)}
FIELDS = {_KEYS.get(field.name, field.name): _KINDS[str(field.type)] for field in dataclasses.fields(LrsGroRow)}


def read_row(record: Mapping) -> tuple[LrsGroRow | None, list[str]]:
    """A row from a JSON object, and what is wrong with it; no row if anything is.

    Fields that LRS-GRO doesn't have are ignored unless they are spelled like one of its own; null stands for a field that is
    lacking.
    """
    values, faults = read_fields(record, FIELDS, {"box": "bbox"}, strict=False)
    for key in ("image_name", "question"):
        if not values.get(key, "-").strip():
            faults.append(f"field {key!r} must not be empty")
    if values.get("type", "global").strip().lower() not in CATEGORIES:
        faults.append(f"type {short(values['type'])} is none of {', '.join(CATEGORIES)}")
    return (None if faults else LrsGroRow(**{_NAMES[key]: value for key, value in values.items()})), faults


def normalise(row: LrsGroRow) -> LrsGroRow:
    """The row without the noise that the released files hold; the only place that repairs any of it.

    - Outer blanks and newlines go, blanks at line ends too; runs of blanks in question, answer and label become one.
    - Categories take the paper's spelling. The stray labels of STRAYS, on questions about the whole scene, become Scene Type;
      a label that nobody knows stays as it is.
    - Level and split are in lower case; a level that is lacking follows from category and box.
    - Answers keep their case (comparisons ignore it) and typing errors such as "a qlarge ship": what was meant is a guess.
    """
    category = _CANONICAL.get(_spelling(row.category), row.category.strip())
    row = dataclasses.replace(
        row,
        image_name=row.image_name.strip(),
        question=" ".join(row.question.split()),
        ground_truth=" ".join(row.ground_truth.split()),
        label=" ".join(row.label.split()) if row.label else None,
        category=category,
        type=row.type and row.type.strip().lower(),
        split=row.split and row.split.strip().lower(),
        overview=_lines(row.overview),
        stage_1_reasoning=_lines(row.stage_1_reasoning),
        stage_2_reasoning=_lines(row.stage_2_reasoning),
    )
    return dataclasses.replace(row, type=row.level)


def _lines(text: str | None) -> str | None:
    return text and "\n".join(line.rstrip() for line in text.strip().split("\n"))


_JSON_BOX = re.compile(r"(?:\[\s*)?\{[^{}]*bbox_2d[^{}]*\}(?:\s*,\s*\{[^{}]*\})*(?:\s*\])?|```(?:json)?")
_TAGS = re.compile(r"</?(?:think|answer)>")


def thoughts(row: LrsGroRow) -> tuple[str, str]:
    """A row's reasoning before and after the crop, as it goes between <think> and </think>; all in the last without a crop.

    As in the released code, the description of the whole image comes first. The JSON box goes: its numbers are of the 1024 px
    frame, the policy sees another one, and the protocol writes the box after the thought in that frame. So the text's last
    words, "... the reference object at", lead to the box as they did.
    """
    before: tuple[str | None, ...] = (row.overview, row.stage_1_reasoning)
    after: tuple[str | None, ...] = (row.stage_2_reasoning,)
    if not row.needs_crop:
        before, after = (), before + after
    return _cleaned(before), _cleaned(after)


def _cleaned(texts: tuple[str | None, ...]) -> str:
    return " ".join(_TAGS.sub("", _JSON_BOX.sub("", text)).strip() for text in texts if text)


def to_row(row: LrsGroRow, where: str) -> Row:
    """A row as released, cleaned, in the form that is judged and made a question.

    Args:
        where: file and line.
    """
    row = normalise(row)
    before, thought = thoughts(row)
    return Row(
        where=where,
        image=row.image_name,
        text=row.question,
        answer=row.ground_truth,
        level=row.level,
        looks=(GivenLook(row.bbox, row.label or "", before),) if row.bbox else (),
        thought=thought,
        category=row.category,
        released=True,
        annotated=True,
        needs_looks=row.needs_crop,
        scale=row.scale,
        notes=tuple(_notes(row)),
    )


def _notes(row: LrsGroRow) -> Iterator[str]:
    """What is odd about a normalised row."""
    if row.cut and not row.bbox:
        yield "asks for a crop without a box"
    if row.category and not any(row.category in names for names in CATEGORIES.values()):
        yield "category is none of the paper's"
    elif row.category and row.category not in CATEGORIES[row.level]:
        yield "category is of another level"
