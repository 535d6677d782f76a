"""What the runs of `zoomearth ablate` add up to: means, spreads, paired differences, as a table and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zoomearth_jax.terminal.tables import table

BASE = "paper"  # which the others are compared with
METRICS = {
    "accuracy": "accuracy",
    "accuracy_t1": "accuracy T=1",
    "apo_iou": "IoU",
    "apo_iou_t1": "IoU T=1",
    "zoom_rate": "zoom rate",
    "accuracy_masked_crop": "masked accuracy",
    "accuracy_global": "no crop needed",
}
NESTED_METRICS = {
    "accuracy_badge": "2 looks: accuracy",
    "accuracy_badge_t1": "2: accuracy T=1",
    "apo_iou_badge_t1": "2: IoU T=1",
    "looks_badge": "2: looks taken",
    "accuracy_badge_masked": "2: masked accuracy",
    "accuracy_site": "1 look: accuracy",
    "accuracy_site_t1": "1: accuracy T=1",
    "looks_site": "1: looks taken",
    "accuracy_scene": "no look: accuracy",
    "looks_scene": "0: looks taken",
}
LEFT, PANEL, GAP, TOP, LINE = 90, 270, 40, 44, 24  # px of the picture
_DIFFERENCES = " Differences are paired by seed; ~ marks those no larger than their deviation."
_NOTE = """\
mean ± standard deviation over seeds; "no crop needed" is accuracy on questions that the overview answers, all else is on
questions that need a crop (chance 0.25)."""
_NESTED_NOTE = """\
mean ± standard deviation over seeds, by the looks that questions need (chance 0.25 for those that need one or two)."""


class Figures(NamedTuple):
    """What is shown of a task: figures with their labels, those that are drawn, and what is to be said of them."""

    metrics: Mapping[str, str]
    drawn: tuple[str, str]
    note: str


# by the looks that a task takes
FIGURES = {
    1: Figures(METRICS, ("accuracy_t1", "apo_iou_t1"), _NOTE + _DIFFERENCES),
    2: Figures(NESTED_METRICS, ("accuracy_badge_t1", "accuracy_site_t1"), _NESTED_NOTE + _DIFFERENCES),
}


def summed_up(scores: Sequence[Mapping], order: Sequence[str], looks: int = 1) -> dict:
    """`table`: the statistics of each variant's runs, in this order; `minus_paper`: those of the differences to `paper`, over the
    seeds that both have.

    Args:
        scores: for each run its variant, its seed and the task's figures.
        looks: which task, see FIGURES.
    """
    by_variant = {name: {row["seed"]: row for row in scores if row["variant"] == name} for name in order}
    paper = by_variant.get(BASE, {})
    found, differences, metrics = [], [], FIGURES[looks].metrics
    for name, rows in by_variant.items():
        if rows:
            values = {metric: [row[metric] for row in rows.values()] for metric in metrics}
            found.append({"variant": name, "seeds": list(rows)} | _statistics(values))
        pairs = [(rows[seed], paper[seed]) for seed in rows if seed in paper]
        if pairs and name != BASE:
            values = {metric: [ours[metric] - base[metric] for ours, base in pairs] for metric in metrics}
            differences.append({"variant": name, "seeds": [row["seed"] for row, _ in pairs]} | _statistics(values))
    return {"table": found, "minus_paper": differences}


def _statistics(values: Mapping[str, Sequence[float]]) -> dict:
    """Mean and sample standard deviation, none of a single seed."""
    return {
        name: {"mean": statistics.fmean(x), "std": statistics.stdev(x) if len(x) > 1 else None}
        for name, x in values.items()
    }


def report(results: Mapping) -> str:
    """The tables that results.json stands for."""
    figures = _figures(results)
    parts = [table([_line(row, figures.metrics, "{:.3f}") for row in results["table"]])]
    if results["minus_paper"]:
        parts += [
            f"minus {BASE}",
            table([_line(row, figures.metrics, "{:+.3f}", mark=True) for row in results["minus_paper"]]),
        ]
    seeds = ", ".join(map(str, dict.fromkeys(row["seed"] for row in results["runs"])))
    return "\n\n".join([*parts, f"{results['settings']['questions']} questions; seeds {seeds}; {figures.note}"])


def _figures(results: Mapping) -> Figures:
    return FIGURES[results["settings"].get("looks", 1)]


def _line(row: Mapping, metrics: Mapping[str, str], form: str, mark: bool = False) -> dict:
    def cell(mean: float, std: float | None) -> str:
        if std is None:
            return form.format(mean)
        within = " ~" if mark and abs(mean) <= std else ""
        return f"{form.format(mean)} ± {std:.3f}{within}"

    return {"variant": row["variant"]} | {label: cell(**row[metric]) for metric, label in metrics.items()}


def picture(results: Mapping) -> str:
    """An SVG with a dot for each run and a stroke for each variant's mean, of the figures that the task draws."""
    names, figures = [row["variant"] for row in results["table"]], _figures(results)
    width, height = LEFT + len(figures.drawn) * (PANEL + GAP), TOP + LINE * len(names) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *(
            f'<text x="{LEFT - 12}" y="{TOP + LINE * i + 4}" text-anchor="end">{name}</text>'
            for i, name in enumerate(names)
        ),
    ]
    for i, metric in enumerate(figures.drawn):
        parts += _panel(results, metric, figures.metrics[metric], LEFT + i * (PANEL + GAP))
    return "\n".join([*parts, "</svg>\n"])


def _panel(results: Mapping, metric: str, label: str, left: float) -> list[str]:
    """One metric's axis, dots and means."""
    values = [row[metric] for row in results["runs"]]
    low, high = min(values), max(values)
    bottom = TOP + LINE * len(results["table"]) - LINE / 2

    def x(value: float) -> float:
        return round(left + (value - low) / ((high - low) or 1.0) * PANEL, 1)

    parts = [f'<text x="{left + PANEL / 2}" y="20" text-anchor="middle">{label}</text>']
    for value, anchor in ((low, "start"), (high, "end")):
        parts.append(f'<text x="{x(value)}" y="{bottom + 18}" text-anchor="{anchor}" fill="#5b6778">{value:.3f}</text>')
    for i, row in enumerate(results["table"]):
        y, mean = TOP + LINE * i, x(row[metric]["mean"])
        parts.append(f'<path d="M{left} {y}h{PANEL}" stroke="#d9dee6"/>')
        parts.append(f'<path d="M{mean} {y - 8}v16" stroke="#1c2430" stroke-width="2"/>')
        for run in results["runs"]:
            if run["variant"] == row["variant"]:
                parts.append(f'<circle cx="{x(run[metric])}" cy="{y}" r="4" fill="#2a62c9" fill-opacity="0.6"/>')
    return parts
