"""`metrics.jsonl` and the progress bar of a run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm


class MetricsLog:
    """Appends one JSON object a step to `metrics.jsonl` and shows a progress bar on a terminal.

    Use as a context manager. A resumed run drops what an interrupted one logged after its checkpoint.
    """

    def __init__(self, directory: Path, *, total: int, label: str, start: int = 0, shown: tuple[str, ...] = ("loss",)):
        """`start` is the last step already done; `shown` are the metrics beside the bar."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= start] if start else []
        self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        for row in kept:
            self._file.write(json.dumps(row) + "\n")
        self._bar = tqdm(total=total, initial=start, desc=label, disable=not sys.stderr.isatty(), leave=False)
        self._shown, self._last = shown, time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self._bar.close()

    def write(self, step: int, metrics: Mapping) -> None:
        """Logs scalars of step number `step` (1 is the first) with the seconds since the last call."""
        now = time.perf_counter()
        row = {
            "step": step,
            **{k: round(float(v), 6) for k, v in metrics.items()},
            "seconds": round(now - self._last, 4),
        }
        self._last = now
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix({k: f"{row[k]:.3f}" for k in self._shown if k in row})


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line cut short by a crash is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
