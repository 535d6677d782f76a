"""MME-RealWorld's questions on remote sensing: five choices, one letter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.questions.json_lines import read_json_rows
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.questions.records import Field
from zoomearth_jax.evaluation.benchmarks.benchmark import Opened, Scores
from zoomearth_jax.evaluation.benchmarks.official import (
    NamedImages,
    RowFault,
    choice_letters,
    fields_of,
    find_file,
    open_rows,
)
from zoomearth_jax.evaluation.figures import figures
from zoomearth_jax.evaluation.records import Item, Record
from zoomearth_jax.evaluation.scorers import one_letter, payload

FILE = "MME_RealWorld.json"
_TEXT = Field(required=True)
FIELDS = {name: _TEXT for name in ("Image", "Text", "Ground truth", "Category")} | {
    "Answer choices": Field("a list of texts", required=True)
}
_ASK = "Which choice is right, by the image? Answer with its letter only."


class MmeRealWorldRs:
    """The 3,738 rows whose `Subtask` is Remote Sensing: position, color, count. `official` is Avg, `official_macro` Avg-C."""

    name = "mme-realworld-rs"
    title = "MME-RealWorld, Remote Sensing"
    where = (
        f"{FILE} and the archives with the images are published at https://huggingface.co/datasets/yifanzhang114/MME-RealWorld: "
        "`hf download yifanzhang114/MME-RealWorld --repo-type dataset --local-dir DIR`, unpack the archives there, and give DIR"
    )
    published: ClassVar[dict] = {
        "ZoomEarth 3B, 1024 px": {"official": 44.10},
        "ZoomEarth 3B, 1024 px, without crops": {"official": 42.10},
        "ZoomEarth 3B, measured by RS-OPSD's authors": {"official": 38.7},
        "VLM-R3": {"official": 39.80},
        "InternVL3 8B": {"official": 41.00},
        "Qwen2.5-VL-3B": {"official": 23.94},
        "RS-OPSD 8B": {"official": 61.5},
    }

    def open(self, data: Path, images: Path | None, config: ImageConfig) -> Opened:
        """See `Benchmark.open`."""
        file = find_file(data, (FILE,), self.where)
        found = NamedImages(images or file.parent, config)
        rows = ((f"{file.name} row {line.number}", line.record, line.fault) for line in read_json_rows(file))
        return open_rows(str(file), self.where, rows, lambda place, row: _item(place, row, found))

    def score(self, records: Sequence[Record]) -> Scores:
        """See `Benchmark.score`: `one_letter`; strictly, the letter and nothing else."""
        read = [one_letter(payload(record), record.choices) for record in records]
        return Scores(
            np.array([letter == r.reference for (letter, _), r in zip(read, records, strict=True)], float),
            np.array([r.answer is not None and r.answer.strip() == r.reference for r in records], float),
            np.array([said for _, said in read], bool),
        )

    def summarize(self, records: Sequence[Record], scores: Scores) -> dict[str, Any]:
        """See `Benchmark.summarize`."""
        return figures(records, scores, {"by_category": [r.category for r in records]})


def _item(place: str, row: Mapping, images: NamedImages) -> Item | None:
    if row.get("Subtask") is None:
        raise RowFault("field 'Subtask' is missing")
    if row["Subtask"] != "Remote Sensing":
        return None
    values = fields_of(row, FIELDS)
    choices, answer = values["Answer choices"], values["Ground truth"].strip()
    if len(answer) != 1 or answer not in choice_letters(choices):
        raise RowFault(f"field 'Ground truth' is {answer[:40]!r}, which is none of the choices")
    text = "\n".join([values["Text"], *choices, _ASK])
    return Item(
        id=str(row.get("Question_id", place)),
        question=Question(images[values["Image"]], text, answer, "global", category=values["Category"]),
        image=values["Image"],
        choices=choices,
        extra={"task": str(row.get("Task", ""))},
    )
