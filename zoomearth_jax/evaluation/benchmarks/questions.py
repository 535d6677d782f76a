"""Questions of one's own folders, and procedural ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.tiles import expanded
from zoomearth_jax.data_pipeline.questions.folders import judge_split
from zoomearth_jax.data_pipeline.questions.mixture import NESTED, SCENES
from zoomearth_jax.data_pipeline.questions.procedural import nested_questions, scene_questions
from zoomearth_jax.data_pipeline.questions.records import refuse
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.benchmarks.benchmark import Opened, Scores
from zoomearth_jax.evaluation.benchmarks.official import distinct
from zoomearth_jax.evaluation.figures import figures
from zoomearth_jax.evaluation.records import Item, Record
from zoomearth_jax.evaluation.scorers import chosen, free_form, payload


@dataclasses.dataclass(frozen=True)
class Questions:
    """Folders with questions.jsonl and images, or with LRS-GRO's test rows; and procedural scenes.

    Attributes:
        match: the official rule for free answers (see `answer_scores`). A row with choices is scored by which one is chosen.
        seed, global_share, count: of procedural scenes, see `scene_questions`.
    """

    match: Literal["exact", "wordnet", "typed"] = "exact"
    seed: int = 0
    global_share: float = 0.15
    count: int = 1024

    name = "questions"
    title = "questions"
    where = "a folder with questions.jsonl and images (`zoomearth scenes --out FOLDER` writes an example), `scenes` or `nested`"
    published: ClassVar[dict] = {}

    def open(self, data: Path, images: Path | None, config: ImageConfig) -> Opened:
        """See `Benchmark.open`; `data` is a folder, `scenes` or `nested`.

        Raises:
            UserError: what `read_questions` refuses too; or `images`, since a folder's images are in it.
        """
        if images is not None:
            raise UserError(
                "questions: a folder's images are in it, in its images/ or tiles/; leave the other folder out"
            )
        if make := {SCENES: scene_questions, NESTED: nested_questions}.get(str(data)):
            scenes = make("test", self.seed, 0, self.count, self.global_share)
            items = [Item(f"{data} {self.seed}: {i}", q, f"{data}/{i}") for i, q in enumerate(scenes)]
            return Opened(items, [], self.count)
        path = expanded(data)
        judged = judge_split(path, "test", config)
        refuse(path, [str(problem) for problem in judged.of_effect("refused")])
        items = [Item(f"{row.image}: {row.text}", q, row.image, q.choices) for row, q in judged.taken]
        return Opened(distinct(items), [str(problem) for problem in judged.of_effect("left out")], len(judged.rows))

    def score(self, records: Sequence[Record]) -> Scores:
        """See `Benchmark.score`: free answers by `match`, and strictly `exact`; with choices the one that is `chosen` must be the
        reference, and strictly its text must be written."""
        official, strict = free_form(records, self.match).astype(float), free_form(records, "exact").astype(float)
        parsed = np.array([bool(record.answer and record.answer.strip()) for record in records], bool)
        for i, record in enumerate(records):
            if record.reference in record.choices:
                choice = chosen(payload(record), record.choices)
                official[i], parsed[i] = choice == record.reference, choice is not None
        return Scores(official, strict, parsed)

    def summarize(self, records: Sequence[Record], scores: Scores) -> dict[str, Any]:
        """See `Benchmark.summarize`."""
        tables = {"by_level": [r.level for r in records]}
        if any(record.category for record in records):
            tables["by_category"] = [record.category or "none" for record in records]
        return figures(records, scores, tables)
