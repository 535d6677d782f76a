"""Rows of LRS-GRO (ZoomEarth, arXiv 2511.12267): typed validated, and their noise normalised.

A row is read as it is (`parse_row`), written back as it was (`LrsGroRow.to_dict`), and cleaned in one place (`normalise`).
`lrs_gro_files` finds and reads the files, `questions` makes questions of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping

from zoomearth_jax.data_pipeline.boxes import ANNOTATION_PX, Frame
from zoomearth_jax.errors import UserError

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
        values = {key: getattr(self, field.name) for key, field in FIELDS.items()}
        return {key: value for key, value in (values | {"bbox": list(self.bbox)}).items() if value is not None}


_KEYS = {"overview": "global"}  # `global` is a word of Python's own
FIELDS = {_KEYS.get(field.name, field.name): field for field in dataclasses.fields(LrsGroRow)}  # by released name


def _numbers(value) -> tuple[float, ...] | None:
    fine = isinstance(value, list | tuple) and len(value) in (0, 4)
    return tuple(value) if fine and all(_number(v) is not None for v in value) else None


def _number(value) -> float | None:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if fine else None


def _text(value) -> str | None:
    return value if isinstance(value, str) else None


def _flag(value) -> bool | None:
    return value if isinstance(value, bool) else None


_KINDS = {  # by a field's annotation: reader that gives None for a wrong value, and its name
    "tuple[float, ...]": (_numbers, "four finite numbers or an empty list"),
    "float | None": (_number, "a finite number"),
    "bool | None": (_flag, "true or false"),
    "str": (_text, "a text"),
    "str | None": (_text, "a text"),
}


def parse_row(record: Mapping, where: str) -> LrsGroRow:
    """A row from a JSON object. Fields that LRS-GRO doesn't have are ignored, null stands for a field that is lacking.

    Raises:
        UserError: a field is missing or of the wrong type, or the level is none of CATEGORIES; named with `where`.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: not a row of LRS-GRO, but a {type(record).__name__}")
    values = {}
    for key, field in FIELDS.items():
        if record.get(key) is None:
            if field.default is dataclasses.MISSING:
                raise UserError(f"{where}: field {key!r} is missing")
            continue
        read, kind = _KINDS[field.type]
        values[field.name] = read(record[key])
        if values[field.name] is None:
            raise UserError(f"{where}: field {key!r} must be {kind}, not {_short(record[key])}")
    row = LrsGroRow(**values)
    if not row.image_name.strip() or not row.question.strip():
        raise UserError(f"{where}: image_name and question must not be empty")
    if row.type is not None and row.type.strip().lower() not in CATEGORIES:
        raise UserError(f"{where}: type {_short(row.type)} is none of {', '.join(CATEGORIES)}")
    return row


def _short(value) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]


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
    return text and "\n".join(line.rstrip() for line in text.strip().splitlines())


def box_fault(row: LrsGroRow, image: Frame | None = None) -> str:
    """What is wrong with a row's box: `degenerate`, `outside`, `partly outside`, or nothing.

    Args:
        image: size of the original; without it only the longest side is known.
    """
    if not row.bbox:
        return ""
    x1, y1, x2, y2 = row.bbox
    if x1 >= x2 or y1 >= y2:
        return "degenerate"
    longest = max(image.width, image.height) if image else 1
    width, height = (
        math.ceil(ANNOTATION_PX * side / longest) for side in ((image.width, image.height) if image else (1, 1))
    )
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return "outside"
    return "partly outside" if min(x1, y1) < 0 or x2 > width or y2 > height else ""


_JSON_BOX = re.compile(r"(?:\[\s*)?\{[^{}]*bbox_2d[^{}]*\}(?:\s*,\s*\{[^{}]*\})*(?:\s*\])?|```(?:json)?")
_TAGS = re.compile(r"</?(?:think|answer)>")


def thoughts(row: LrsGroRow) -> tuple[str, str]:
    """A row's reasoning before and after the crop, as it goes between <think> and </think>; all in the first without a crop.

    As in the released code, the description of the whole image comes first. The JSON box goes: its numbers are of the 1024 px
    frame, the policy sees another one, and the protocol writes the box after the thought in that frame. So the text's last
    words, "... the reference object at", lead to the box as they did.
    """
    before, after = ((row.overview, row.stage_1_reasoning), (row.stage_2_reasoning,))
    if not row.needs_crop:
        before, after = before + after, ()
    return tuple(
        " ".join(_TAGS.sub("", _JSON_BOX.sub("", text)).strip() for text in part if text) for part in (before, after)
    )
