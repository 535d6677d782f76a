"""What a benchmark is: how its official file is read, and how predictions are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.records import Item, Record
from zoomearth_jax.terminal.progress import say

_SHOWN = 10  # faults that are named


@dataclasses.dataclass(frozen=True)
class Opened:
    """The questions of an official file.

    Attributes:
        items: those that can be asked, in the file's order.
        faults: one line for each row that can't be, with the row and the field.
        total: rows of the file that belong to the benchmark.
    """

    items: list[Item]
    faults: list[str]
    total: int


class Scores(NamedTuple):
    """Scores of records: arrays with one number per record.

    Attributes:
        official: 0 to 1 by the benchmark's own rule, on the answer only (see `Record.answer`), or on the whole last text where
            the model wrote no <answer>.
        strict: 1 where the answer is the reference in the one form that was asked for, else 0.
        parsed: whether the official rule found an answer in the text at all.
    """

    official: np.ndarray
    strict: np.ndarray
    parsed: np.ndarray


class Benchmark(Protocol):
    """A benchmark: a module of this folder exports one, and `BENCHMARKS` names it."""

    @property
    def name(self) -> str:
        """Name on the command line."""
        ...

    @property
    def title(self) -> str:
        """Name for people."""
        ...

    @property
    def where(self) -> str:
        """How one gets the official files."""
        ...

    @property
    def published(self) -> dict[str, dict[str, float]]:
        """Figures of papers in percent: model -> the summary's keys."""
        ...

    def open(self, data: Path, images: Path | None, config: ImageConfig) -> Opened:
        """Reads the official file or folder.

        Args:
            data: the file, or the folder that holds it under its official name.
            images: the folder with the images; by default beside the file.

        Raises:
            UserError: not this benchmark's file, or nothing in it that can be asked.
        """
        ...

    def score(self, records: Sequence[Record]) -> Scores:
        """Scores of records without faults."""
        ...

    def summarize(self, records: Sequence[Record], scores: Scores) -> dict[str, Any]:
        """The benchmark's own figures: `official` and `strict` (its headline averages), tables by kind under `by_…` (each a mapping
        of name to {"official", "strict", "count"}), all as shares of 1."""
        ...


def with_match(benchmark: Benchmark, match: str | None) -> Benchmark:
    """The benchmark with another rule for free answers; None leaves its own.

    Raises:
        UserError: its rule can't be chosen.
    """
    if match is None:
        return benchmark
    if not hasattr(benchmark, "match"):
        raise UserError(f"match: {benchmark.name} has a rule of its own; only free answers are matched")
    return dataclasses.replace(benchmark, match=match)  # type: ignore[type-var]  # those with a rule to choose are dataclasses


def say_left_out(faults: Sequence[str]) -> None:
    """Names rows that are left out, the first ones each, the others by their number."""
    for fault in faults[:_SHOWN]:
        say(f"{fault}; left out")
    if len(faults) > _SHOWN:
        say(f"{len(faults) - _SHOWN:,} more rows are left out")
