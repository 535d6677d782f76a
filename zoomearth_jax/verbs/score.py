"""`zoomearth score`: scores predictions again, without a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import tyro

from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.evaluation.benchmarks import BENCHMARKS
from zoomearth_jax.evaluation.benchmarks.benchmark import say_left_out, with_match
from zoomearth_jax.evaluation.figures import scored
from zoomearth_jax.evaluation.predictions import read_predictions
from zoomearth_jax.evaluation.table import lines
from zoomearth_jax.terminal.progress import say


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """Scores predictions again, without a model.

    Attributes:
        files: `records.jsonl` of evaluations, lmms-eval's `*_samples_*.jsonl`, results of the released code, or rows of JSON
            with references and answers. Several files are parts of one run; of a question that is there twice the last
            prediction counts.
        benchmark: by whose rule; where the files don't say it.
        match: when a free answer of lrs-gro or questions is correct: `exact`, `wordnet`, `typed`; without it by the benchmark's own
            rule.
        without: predictions of the same questions without crops, to count the answers that crops fix and break.
        fields: what other rows call their fields, such as `output=reply reference=gold`.
        json: print JSON.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    benchmark: str | None = None
    match: Literal["exact", "wordnet", "typed"] | None = None
    without: Path | None = None
    fields: tuple[str, ...] = ()
    json: bool = False

    def __post_init__(self):
        if not self.files:
            raise UserError("score: give a file of predictions, such as OUT/records.jsonl of an evaluation")
        if self.benchmark is not None and self.benchmark not in BENCHMARKS:
            raise UserError(f"benchmark: {self.benchmark!r} is unknown; {suggestion(self.benchmark, BENCHMARKS)}")
        for field in self.fields:
            if not all(field.partition("=")):
                raise UserError(f"fields: {field!r}; write KEY=NAME, such as output=reply")


def score(config: ScoreConfig) -> dict:
    """Prints a table or JSON, and returns the summary with the counts.

    Raises:
        UserError: files that can't be read, or nothing in them that can be scored.
    """
    fields = dict(field.split("=", 1) for field in config.fields)
    read = read_predictions(config.files, config.benchmark, fields)
    benchmark = BENCHMARKS.get(read.records[0].benchmark)
    if benchmark is None:
        name = read.records[0].benchmark
        raise UserError(f"{config.files[0]}: benchmark {name[:60]!r} is unknown; {suggestion(name, BENCHMARKS)}")
    benchmark = with_match(benchmark, config.match)
    say_left_out(read.faults)
    if read.repeated:
        say(f"{read.repeated:,} rows are of questions that come again; the last one counts")
    without = read.without
    if config.without is not None:
        without = read_predictions([config.without], benchmark.name, fields).records
    if all(record.fault for record in read.records):
        raise UserError(f"{config.files[0]}: no image of these records could be read ({read.records[0].fault})")
    summary = scored(benchmark, read.records, without)
    result = {"benchmark": benchmark.name, "refused_rows": len(read.faults), "summary": summary}
    if config.json:
        print(json.dumps(result | {"published": benchmark.published}, indent=2))
    else:
        total = len(read.records) + len(read.faults)
        partial = total if total != summary["questions"] else None
        print("\n".join(lines(benchmark.title, {"scored": summary}, partial, benchmark.published)))
    return result
