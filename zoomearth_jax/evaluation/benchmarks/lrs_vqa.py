"""LRS-VQA: free answers of a word or two about very large images, most with a box of what is asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, clamped
from zoomearth_jax.data_pipeline.questions.json_lines import read_json_rows
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.data_pipeline.questions.records import Field
from zoomearth_jax.evaluation.benchmarks.benchmark import Opened, Scores
from zoomearth_jax.evaluation.benchmarks.official import NamedImages, RowFault, fields_of, find_file, open_rows
from zoomearth_jax.evaluation.figures import figures
from zoomearth_jax.evaluation.records import Item, Record
from zoomearth_jax.evaluation.scorers import are_alike, payload

FILE = "LRS_VQA_merged.jsonl"
FIELDS = {name: Field(required=True) for name in ("image", "category", "text", "ground_truth")} | {
    "hbox": Field("four finite numbers or an empty list")
}
_ASK = "Answer with one word or a short phrase."


class LrsVqa:
    """7,333 rows in 8 categories. `official` is OA, `official_macro` AA."""

    name = "lrs-vqa"
    title = "LRS-VQA"
    where = (
        f"{FILE} and the archive with the images are published at https://huggingface.co/datasets/ll-13/LRS-VQA: "
        "`hf download ll-13/LRS-VQA --repo-type dataset --local-dir DIR`, unpack LRS_VQA.7z.001 there, and give DIR"
    )
    published: ClassVar[dict] = {
        "ZoomEarth 3B, measured by RS-OPSD's authors": {"official": 21.6},
        "RS-OPSD 8B": {"official": 33.3},
        "ZoomSearch": {"official": 30.2},
    }

    def open(self, data: Path, images: Path | None, config: ImageConfig) -> Opened:
        """See `Benchmark.open`."""
        file = find_file(data, (FILE, f"LRS_VQA/{FILE}"), self.where)
        found = NamedImages(images or file.parent, config)
        rows = ((f"{file.name} line {line.number}", line.record, line.fault) for line in read_json_rows(file))
        return open_rows(str(file), self.where, rows, lambda place, row: _item(place, row, found))

    def score(self, records: Sequence[Record]) -> Scores:
        """See `Benchmark.score`: `are_alike`; strictly, equal in lower case, and within <answer>."""
        given, wanted = [payload(record) for record in records], [record.reference for record in records]
        return Scores(
            are_alike(given, wanted).astype(float),
            np.array([r.answer is not None and r.answer.lower() == r.reference.lower() for r in records], float),
            np.array([bool(text.strip()) for text in given], bool),
        )

    def summarize(self, records: Sequence[Record], scores: Scores) -> dict[str, Any]:
        """See `Benchmark.summarize`."""
        return figures(records, scores, {"by_category": [r.category for r in records]})


def _item(place: str, row: Mapping, images: NamedImages) -> Item:
    values = fields_of(row, FIELDS)
    answer = values["ground_truth"].strip()
    if not answer:
        raise RowFault("field 'ground_truth' is empty")
    image = images[values["image"]]
    box = _box(values.get("hbox", ()), image.frame)
    return Item(
        id=str(row.get("question_id", place)),
        question=Question(
            image,
            f"{values['text']}\n{_ASK}",
            answer,
            "object" if box else "global",
            (Look(box),) if box else (),
            category=values["category"],
        ),
        image=values["image"],
    )


def _box(corners: Sequence[float], frame: Frame) -> Box | None:
    """The part of a box inside the image; None without any, since the official score needs no box."""
    if not corners:
        return None
    x1, y1, x2, y2 = map(float, corners)
    return clamped(Box(x1, y1, x2, y2, frame))
