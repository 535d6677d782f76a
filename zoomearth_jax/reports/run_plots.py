"""Metrics of several runs over their steps: a PNG, or a page that loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoomearth_jax.errors import UserError
from zoomearth_jax.files import write_file
from zoomearth_jax.reports.page import part, policy, render

SMOOTHING = 0.9  # of the running mean
FEW = 30  # values of a metric that are drawn with their points
_Series = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]  # metric -> run -> (step, value) pairs


def write_plot(path: Path, metrics: _Series, table: Sequence[Mapping[str, Any]]) -> None:
    """Draws each metric over the steps, all runs in one plot: their values, and where there are many a running mean.

    Args:
        path: ends in .png or .html.
        metrics: of each metric the (step, value) pairs of each run that has it.
        table: rows that a page shows below the plots, all with the same keys.

    Raises:
        UserError: matplotlib isn't installed, or the file can't be written.
    """
    if path.suffix.lower() == ".png":
        write_file(path, _drawn(metrics, "png"))
        return
    style = part("plots.css")
    pictures = [
        (f"{name} of {', '.join(runs)}", base64.b64encode(_drawn({name: runs}, "svg")).decode())
        for name, runs in metrics.items()
    ]
    names = dict.fromkeys(run for runs in metrics.values() for run in runs)
    write_file(
        path,
        render(
            "plots.html.j2",
            policy=policy("", style),
            style=style,
            title=", ".join(names),
            pictures=pictures,
            table=table,
        ),
    )


def _drawn(metrics: _Series, form: str) -> bytes:
    """A figure as PNG or SVG, a plot for each metric."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need the package matplotlib; pip install 'zoomearth_jax[plot]'") from None

    columns = min(2, len(metrics))
    rows = -(-len(metrics) // columns)
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "plot"}):
        figure = Figure(figsize=(7 * columns, 4 * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for plot, (name, runs) in zip(axes, metrics.items(), strict=False):
            lines = [_line(plot, f"C{number % 10}", values) for number, values in enumerate(runs.values())]
            plot.legend(lines, list(runs), fontsize="small")
            plot.set(title=name, xlabel="step")
            plot.grid(alpha=0.3)
        for plot in axes[len(metrics) :]:  # the place that is left over
            plot.set_axis_off()
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=120, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def _line(plot, color: str, pairs: Sequence[tuple[int, float]]):
    """Draws one run; its line in the legend."""
    steps, values = zip(*pairs, strict=True)
    if len(pairs) <= FEW:
        return plot.plot(steps, values, color=color, marker="o", markersize=3)[0]
    plot.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    return plot.plot(steps, running_mean(values), color=color)[0]


def running_mean(values: Sequence[float], smoothing: float = SMOOTHING) -> list[float]:
    """An exponential mean without the pull of its start."""
    mean, means = 0.0, []
    for count, value in enumerate(values, 1):
        mean = smoothing * mean + (1 - smoothing) * value
        means.append(mean / (1 - smoothing**count))
    return means
