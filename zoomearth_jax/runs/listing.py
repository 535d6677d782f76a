"""What a run's directory tells about it, without loading anything: its settings, metrics, state and size. Needs no JAX."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from zoomearth_jax.errors import UserError
from zoomearth_jax.files import is_locked
from zoomearth_jax.runs.metric_rows import find_rows

SETTINGS, METRICS = "run.yaml", "metrics.jsonl"
SHOWN = ("loss", "reward_total", "reward_answer", "validation/accuracy")  # metrics whose last values a list has
_KINDS = {"group": "grpo", "pack_len": "sft", "stop_x1_loss": "pretrain-nano"}  # a setting that only one verb has
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # seven times as fast as the one that reads settings strictly
_LOWER = (
    "loss",
    "kl",
    "flat_groups",
    "parse_failure",
    "no_answer",
    "truncated",
    "grad_norm",
    "perf/seconds",
    "broken_images",
)


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """A run as its directory shows it.

    Attributes:
        run: its directory.
        kind: the verb, `sft`, `grpo` or `pretrain-nano`; empty where the settings don't tell.
        model: what it started from.
        step, steps: steps done and planned; None where nothing tells.
        state: `running` (a process holds its lock), `finished` (all steps are done) or `stopped`.
        seconds: of all steps that are logged.
        updated: when its metrics were written last, in ISO 8601, UTC; empty without metrics.
        megabytes: size of all its files.
        metrics: the last value of each of SHOWN that it has.
        note: what can't be read; empty where all can.
    """

    run: str
    kind: str = ""
    model: str = ""
    step: int | None = None
    steps: int | None = None
    state: str = "stopped"
    seconds: float = 0.0
    updated: str = ""
    megabytes: float = 0.0
    metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data without nesting: metrics under their own names, null where there is none."""
        flat = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "metrics"}
        return {**flat, **{name: self.metrics.get(name) for name in SHOWN}}


def find_runs(folder: Path) -> Iterator[Path]:
    """Directories of runs in a folder, however deep, in the order of their names; links and hidden folders aren't followed."""
    for place, folders, names in os.walk(folder):
        if SETTINGS in names or METRICS in names:
            folders.clear()
            yield Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def describe(run: Path) -> RunInfo:
    """What a run's directory tells; whatever can't be read becomes the note."""
    notes: list[str] = []
    settings: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    try:
        settings = _settings(run / SETTINGS)
    except UserError as error:
        notes.append(str(error))
    try:
        rows, broken = find_rows(run / METRICS)
        if broken:
            notes.append(f"{broken:,} lines of {METRICS} can't be read")
    except UserError as error:
        notes.append(str(error))
    step, steps = rows[-1]["step"] if rows else None, settings.get("steps")
    steps = steps if isinstance(steps, int) else None
    done = step is not None and steps is not None and step >= steps
    return RunInfo(
        run=str(run),
        kind=next((kind for key, kind in _KINDS.items() if key in settings), ""),
        model=str(settings.get("model", "")),
        step=step,
        steps=steps,
        state="running" if is_locked(run) else "finished" if done else "stopped",
        seconds=round(sum(x for row in rows if isinstance(x := row.get("perf/seconds"), int | float)), 1),
        updated=_written(run / METRICS),
        megabytes=round(_size(run) / 1e6, 1),
        metrics={name: values[-1][1] for name in SHOWN if (values := series(rows, name))},
        note="; ".join(notes),
    )


def series(rows: list[dict[str, Any]], metric: str) -> list[tuple[int, float]]:
    """The (step, value) pairs of a metric, where it has a value."""
    return [(row["step"], float(x)) for row in rows if isinstance(x := row.get(metric), int | float)]


def best(values: list[tuple[int, float]], metric: str) -> tuple[int, float]:
    """The best of (step, value) pairs, the first of equals: the lowest of what is better when it is low, else the highest."""
    sign = -1 if metric.removeprefix("validation/") in _LOWER else 1
    return max(values, key=lambda pair: (sign * pair[1], -pair[0]))


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
    except FileNotFoundError:
        raise UserError(f"no {path.name}") from None
    except OSError as error:
        raise UserError(f"{path.name} can't be read ({error.strerror or error})") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"{path.name} is not YAML") from None
    if not isinstance(found, dict):
        raise UserError(f"{path.name} holds no settings")
    return found


def _written(path: Path) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    except OSError:
        return ""
    return moment.isoformat(timespec="seconds")


def _size(folder: Path) -> int:
    """Bytes of all files in a folder; what goes away meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total
