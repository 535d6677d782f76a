"""`pass_rates.jsonl` of a run: how many of its answers to each question were correct, whenever it was asked."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import jax
import numpy as np

from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.rows.loader import LAG
from zoomearth_jax.data_pipeline.rows.workers import Place
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import write_file, writing
from zoomearth_jax.runs.metric_rows import SCHEMA, read_metrics
from zoomearth_jax.runs.start import of_all_processes

FILE = "pass_rates.jsonl"
Rates = list[
    tuple[str, int, float]
]  # name of the source, number of the question in it from 0, share of correct answers


class PassRates:
    """Pass rates by step, in memory and in OUT/pass_rates.jsonl, a line a step; those of an earlier run are of step 0. Use as a
    context manager.

    What a run leaves out follows from the lines up to its checkpoint, so a run that goes on cuts off what comes after.
    """

    def __init__(self, config: GRPOConfig):
        """Reads and writes nothing yet."""
        self.path, self._names, self._curriculum = Path(config.out) / FILE, config.data, config.curriculum
        self._asked: dict[tuple[str, int], list[tuple[int, float]]] = collections.defaultdict(list)
        self._kept: list[dict] = []
        self._file: TextIO | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._file:
            with writing(self.path):
                self._file.close()

    def open(self, start: int, digests: Mapping[str, str]) -> None:
        """Takes what is known before the first step that is to come.

        Args:
            start: steps already done.
            digests: of the run's questions, by source.

        Raises:
            UserError: a line is missing that decides which questions are left out, or the earlier run has none or had others.
        """
        if start:
            self._kept = [row for row in _read(self.path) if row["step"] <= start]
            missing = set(range(1, start + 1)) - {row["step"] for row in self._kept}
            if self._curriculum.active and missing:
                raise UserError(
                    f"{self.path}: no pass rates of step {min(missing)}, so that nobody knows which questions to leave out; "
                    "start a new run"
                )
        elif self._curriculum.run:
            self._kept = [{"schema": SCHEMA, "step": 0, "rates": _last_rates(self._curriculum.run, digests)}]
        for row in self._kept:
            self._add(row["step"], row["rates"])

    def _add(self, step: int, rates: Rates) -> None:
        for name, index, rate in rates:
            self._asked[name, index].append((step, rate))

    def passed_over(self, place: Place, step: int) -> bool:
        """Whether a question's last pass rate was out of range `LAG` steps before the step after `step` others."""
        asked = self._asked.get((self._names[place.source], place.index), ())
        rate = next((rate for known, rate in reversed(asked) if known <= max(step + 1 - LAG, 0)), None)
        return rate is not None and not self._curriculum.low <= rate <= self._curriculum.high

    def note(self, step: int, places: Sequence[Place], correct: np.ndarray, group: int) -> np.ndarray:
        """Takes and logs the pass rates of the questions of a step; all processes must call it at the same time.

        Args:
            step: 1 is the first.
            places: of this process's questions.
            correct: correct answers to each, of `group`.

        Returns:
            the pass rates, float64, of all processes' questions.
        """
        own = {"source": [p.source for p in places], "index": [p.index for p in places], "correct": correct}
        table = of_all_processes({name: np.asarray(x, np.int32) for name, x in own.items()})
        shares = table["correct"] / group
        asked = zip(table["source"].tolist(), table["index"].tolist(), shares.tolist(), strict=True)
        rates = [(self._names[source], index, rate) for source, index, rate in asked]
        self._add(step, rates)
        if jax.process_index() == 0:
            self._write({"schema": SCHEMA, "step": step, "rates": rates})
        return shares

    def _write(self, row: dict) -> None:
        if not self._file:
            write_file(self.path, "".join(json.dumps(kept) + "\n" for kept in self._kept))
            with writing(self.path):
                self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        with writing(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            if self._curriculum.active:  # it must not be lost where a later checkpoint isn't
                os.fsync(self._file.fileno())


def _read(path: Path) -> list[dict]:
    """The lines of a pass_rates.jsonl.

    Raises:
        UserError: one that isn't of the form.
    """
    rows = read_metrics(path)
    for row in rows:
        try:
            row["rates"] = [(str(name), int(index), float(rate)) for name, index, rate in row["rates"]]
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: not the pass rates of a run, see step {row.get('step')}") from None
    return rows


def _last_rates(run: Path, digests: Mapping[str, str]) -> Rates:
    """The last pass rates of each question of a run.

    Raises:
        UserError: it has none, or its questions are others.
    """
    last = {(name, index): rate for row in _read(run / FILE) for name, index, rate in row["rates"]}
    if not last:
        raise UserError(f"{run / FILE}: no pass rates; give curriculum.run a run of GRPO")
    try:
        before = json.loads((run / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{run / 'data.json'}: can't tell what questions the pass rates are of ({error})") from None
    for name in digests:
        if before.get(name) != digests[name]:
            raise UserError(f"{run}: its questions of {name} are not those of this run; leave curriculum.run out")
    return [(name, index, rate) for (name, index), rate in last.items() if name in digests]
