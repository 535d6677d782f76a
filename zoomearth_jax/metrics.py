"""`metrics.jsonl` and the progress bar of a run. docs/metrics.md tells what each metric means."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from tqdm import tqdm

from zoomearth_jax.errors import UserError
from zoomearth_jax.sinks import Sink

SCHEMA = 1  # raised when a metric changes its meaning


class MetricsLog:
    """Appends one JSON object a step to `metrics.jsonl`, then to the sinks, and shows a progress bar on a terminal.

    Use as a context manager. A resumed run drops what an interrupted one logged after its checkpoint. Of several processes
    the first alone writes.
    """

    def __init__(
        self,
        directory: Path,
        *,
        total: int,
        label: str,
        start: int = 0,
        shown: tuple[str, ...] = ("loss",),
        sinks: Sequence[Sink] = (),
    ):
        """`start` is the last step already done; `shown` are the metrics beside the bar."""
        self.path = Path(directory) / "metrics.jsonl"
        self._writes = jax.process_index() == 0
        if self._writes:
            _keep(self.path, start)
        self._file = open(self.path, "a", encoding="utf-8") if self._writes else None  # noqa: SIM115
        quiet = not (self._writes and sys.stderr.isatty())
        self._bar = tqdm(total=total, initial=start, desc=label, disable=quiet, leave=False)
        self._shown, self._sinks, self._last = shown, sinks, time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for sink in self._sinks:
            sink.close()
        if self._writes:
            self._file.close()
        self._bar.close()

    def write(self, step: int, metrics: Mapping, alarms: Sequence[str] = ()) -> None:
        """Logs scalars of step number `step` (1 is the first), with the seconds since the last call as `perf/seconds`.

        What is not finite is null in the file and left out of the sinks; `alarms` are the names of those that are on.
        """
        now = time.perf_counter()
        values = {"perf/seconds": now - self._last, **metrics}
        self._last = now
        if not self._writes:
            return
        row = {"schema": SCHEMA, "step": step, **{name: _number(value) for name, value in values.items()}}
        self._file.write(json.dumps(row | ({"alarms": list(alarms)} if alarms else {}), allow_nan=False) + "\n")
        self._file.flush()
        scalars = {name: row[name] for name in values if row[name] is not None}
        for sink in self._sinks:
            sink.write(step, scalars)
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix({name: f"{scalars[name]:.3f}" for name in self._shown if name in scalars})

    def picture(self, step: int, name: str, path: Path) -> None:
        """Shows a PNG file in the sinks."""
        for sink in self._sinks:
            sink.picture(step, name, path)


def say(line: str) -> None:
    """One line on standard error, above the progress bar."""
    tqdm.write(f"zoomearth: {line}", file=sys.stderr)


def _number(value) -> float | int | None:
    """Six significant digits; null where there is no number."""
    if isinstance(value, int):
        return value
    return float(f"{float(value):.6g}") if math.isfinite(value) else None


def _keep(path: Path, start: int) -> None:
    """Leaves the rows up to step `start` in the file, which an interruption can't lose."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [row for row in read_metrics(path) if row["step"] <= start] if start else []
    new = path.with_suffix(".jsonl.partial")
    new.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    new.replace(path)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line cut short by a crash is left out.

    Raises:
        UserError: rows of a later schema than this version knows.
    """
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
        if rows[-1].get("schema", SCHEMA) > SCHEMA:
            raise UserError(f"{path}: schema {rows[-1]['schema']}, this version reads {SCHEMA}; update zoomearth_jax")
    return rows
