"""`metrics.jsonl` and the progress bar of a run. docs/metrics.md tells what each metric means."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

import jax

from zoomearth_jax.files import write_file, writing
from zoomearth_jax.runs.metric_rows import SCHEMA, read_metrics
from zoomearth_jax.runs.sinks import Sink
from zoomearth_jax.terminal.progress import Progress


class MetricsLog:
    """Appends one JSON object per step to `metrics.jsonl`, then to the sinks, and shows the progress.

    Use as a context manager. Files are opened with the first step, so that a failed start leaves none; a resumed run then
    drops what an interrupted one logged after its checkpoint. Of several processes only the first writes.
    """

    def __init__(
        self,
        directory: Path,
        *,
        total: int,
        label: str,
        start: int = 0,
        shown: tuple[str, ...] = ("loss",),
        sinks: Callable[[], Sequence[Sink]] = tuple,
        before: Mapping[str, float] = MappingProxyType({}),
    ):
        """`start` is the last step already done; `shown` are the metrics beside the progress; `sinks` opens those; `before` are
        metrics of step 0, which are written with the first step's."""
        self.path = Path(directory) / "metrics.jsonl"
        self._writes = jax.process_index() == 0
        self._progress = Progress(label, total, start=start, quiet=not self._writes)
        self._start, self._shown, self._open_sinks, self._before = start, shown, sinks, before
        self._file: TextIO | None = None
        self._sinks: Sequence[Sink] = ()
        self._last = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for sink in self._sinks:
            sink.close()
        if self._file:
            with writing(self.path):
                self._file.close()
        self._progress.__exit__()

    def _open(self) -> TextIO:
        _keep(self.path, self._start)
        with writing(self.path):
            self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._sinks = self._open_sinks()
        if self._before:
            self._write_row(self._file, 0, self._before)
        return self._file

    def _write_row(self, file: TextIO, step: int, values: Mapping, alarms: Sequence[str] = ()) -> dict[str, float]:
        """Writes a row to the file and the sinks; returns the scalars that are finite."""
        row = {"schema": SCHEMA, "step": step, **{name: _number(value) for name, value in values.items()}}
        with writing(self.path):
            file.write(json.dumps(row | ({"alarms": list(alarms)} if alarms else {}), allow_nan=False) + "\n")
        scalars = {name: value for name in values if (value := row[name]) is not None}
        for sink in self._sinks:
            sink.write(step, scalars)
        return scalars

    def write(self, step: int, metrics: Mapping, alarms: Sequence[str] = ()) -> None:
        """Logs scalars of step number `step` (1 is the first), with the seconds since the last call as `perf/seconds`.

        What is not finite is null in the file and left out of the sinks; `alarms` are the names of those that are on.
        """
        now = time.perf_counter()
        values = {"perf/seconds": now - self._last, **metrics}
        self._last = now
        if not self._writes:
            return
        scalars = self._write_row(self._file or self._open(), step, values, alarms)
        notes = {name: f"{scalars[name]:.3f}" for name in self._shown if name in scalars}
        self._progress.update(step - self._progress.done, notes)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Shows a PNG file in the sinks."""
        if self._writes and not self._file:
            self._open()
        for sink in self._sinks:
            sink.picture(step, name, path)


def _number(value) -> float | int | None:
    """Six significant digits; null where there is no number."""
    if isinstance(value, int):
        return value
    return float(f"{float(value):.6g}") if math.isfinite(value) else None


def _keep(path: Path, start: int) -> None:
    """Leaves the rows up to step `start` in the file, which an interruption can't lose."""
    kept = [row for row in read_metrics(path) if row["step"] <= start] if start else []
    write_file(path, "".join(json.dumps(row) + "\n" for row in kept))
