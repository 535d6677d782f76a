"""Geometry of the plots of an evaluation; the template draws them as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

WIDTH, LINE, BAR = 360, 36, 10  # of a chart of bars, in units of its view box: width, height per bar, thickness
HIGH, BINS = 150, 10  # of the histogram


class Bar(NamedTuple):
    """A share of 1 with its name; `low` to `high` is its interval, `kind` the number of its color."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    kind: int = 0


def bars(title: str, rows: Sequence[Bar]) -> dict[str, Any]:
    """Bars from 0 to 1 under each other, each under its name, with intervals as whiskers."""

    def x(share: float) -> float:
        return round(min(max(share, 0.0), 1.0) * WIDTH, 1)

    drawn = [
        {
            "label": row.label,
            "text": f"{100 * row.value:.1f} %" + (f", {row.note}" if row.note else ""),
            "y": i * LINE,
            "width": x(row.value),
            "kind": row.kind,
            "whisker": None if row.low is None or row.high is None else (x(row.low), x(row.high)),
        }
        for i, row in enumerate(rows)
    ]
    return {"form": "bars", "title": title, "rows": drawn, "width": WIDTH, "height": LINE * len(rows), "bar": BAR}


def histogram(title: str, ious: Sequence[float | None], kind: int = 0) -> dict[str, Any]:
    """Counts of IoUs in tenths, and before them of None (no box where one was due)."""
    known = [iou for iou in ious if iou is not None]
    counts = [len(ious) - len(known), *np.histogram(known, BINS, (0, 1))[0].tolist()]
    labels = ["no box", *(f"{i / BINS:.1f}" for i in range(BINS))]
    step, top = WIDTH / (len(counts) + 1), max([*counts, 1])  # a free place between the first column and the others
    columns = [
        {
            "label": label,
            "count": count,
            "x": round((i + (i > 0)) * step + 2, 1),
            "width": round(step - 4, 1),
            "height": round((HIGH - 40) * count / top, 1),
            "none": i == 0,
        }
        for i, (label, count) in enumerate(zip(labels, counts, strict=True))
    ]
    return {"form": "histogram", "title": title, "columns": columns, "width": WIDTH, "height": HIGH, "kind": kind}
