"""LRS-GRO's test split: free answers on three levels, with reference boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.image_folder import ImageFolder
from zoomearth_jax.data_pipeline.images.tiles import expanded
from zoomearth_jax.data_pipeline.questions.folder_rows import OpenImages, Problem, judge
from zoomearth_jax.data_pipeline.questions.lrs_gro import to_row
from zoomearth_jax.data_pipeline.questions.lrs_gro_files import WHERE_FROM, find_split, images_of
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.benchmarks.benchmark import Opened, Scores
from zoomearth_jax.evaluation.benchmarks.official import distinct
from zoomearth_jax.evaluation.figures import figures
from zoomearth_jax.evaluation.records import Item, Record
from zoomearth_jax.evaluation.scorers import free_form


@dataclasses.dataclass(frozen=True)
class LrsGro:
    """9,734 questions on 908 images.

    Attributes:
        match: the official rule: `wordnet`, as the paper has it, or another one of `answer_scores`.
    """

    match: Literal["exact", "wordnet", "typed"] = "wordnet"

    name = "lrs-gro"
    title = "LRS-GRO, test split"
    where = WHERE_FROM
    published: ClassVar[dict] = {
        "ZoomEarth 3B, 512 px": {
            "official": 53.76,
            "by_level.global": 63.09,
            "by_level.region": 46.11,
            "by_level.object": 51.80,
            "apo_iou": 34.39,
        },
        "VLM-R3 7B, 512 px": {
            "official": 50.17,
            "by_level.global": 69.72,
            "by_level.region": 44.83,
            "by_level.object": 37.40,
            "apo_iou": 19.93,
        },
        "InternVL3 8B": {
            "official": 53.67,
            "by_level.global": 71.60,
            "by_level.region": 44.58,
            "by_level.object": 47.80,
        },
        "Qwen2.5-VL-3B, 1024 px": {
            "official": 42.25,
            "by_level.global": 59.01,
            "by_level.region": 31.91,
            "by_level.object": 37.46,
        },
    }

    def open(self, data: Path, images: Path | None, config: ImageConfig) -> Opened:
        """See `Benchmark.open`. An item's id is its image and question, since the released ids differ between files."""
        path = expanded(data)
        read = find_split(path, "test")
        rows = [to_row(row, where) for where, row in read.rows]
        released = {where: row for where, row in read.rows}
        faults = [Problem(said, "refused", where) for where, said in read.faults]
        folder = OpenImages(ImageFolder(images or images_of(path), config))
        judged = judge(rows, faults, folder, drop_unreasoned=False)
        lines = [str(problem) for problem in judged.problems if problem.effect != "noted"]
        if not judged.taken:
            raise UserError(f"{path}: none of {len(rows):,} rows can be asked ({lines[0]}). {self.where}")
        items = [
            Item(
                id=f"{row.image}: {row.text}",
                question=question,
                image=row.image,
                extra={"question_id": released[row.where].question_id},
            )
            for row, question in judged.taken
        ]
        return Opened(distinct(items), lines, len(rows) + len({fault.where for fault in faults}))

    def score(self, records: Sequence[Record]) -> Scores:
        """See `Benchmark.score`: `match`; strictly, `exact`. Only what stands in <answer> counts, as in the paper."""
        return Scores(
            free_form(records, self.match).astype(float),
            free_form(records, "exact").astype(float),
            np.array([bool(record.answer and record.answer.strip()) for record in records], bool),
        )

    def summarize(self, records: Sequence[Record], scores: Scores) -> dict[str, Any]:
        """See `Benchmark.summarize`. Types go by level, because Counting is a type of two."""
        return figures(
            records,
            scores,
            {"by_level": [r.level for r in records], "by_type": [f"{r.level}: {r.category}" for r in records]},
        )
