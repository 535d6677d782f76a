"""`report.html`: results, training curves and episodes in one self-contained page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from zoomearth_jax.files import write_file
from zoomearth_jax.reports.page import render
from zoomearth_jax.reports.pictures import COLORS, enlarged, with_boxes
from zoomearth_jax.reports.run_plots import running_mean
from zoomearth_jax.runs.metric_rows import read_metrics

CURVES = {
    "sft": ("loss", "entropy"),
    "grpo": (
        "reward_total",
        "reward_answer",
        "reward_iou",
        "reward_region",
        "entropy",
        "zoom_rate",
        "flat_groups",
        "kl",
    ),
}


def data_url(picture: Image.Image) -> str:
    """A PNG as a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def curve(name: str, steps: list[int], values: list[float]) -> dict:
    """A line chart's labels and points (in the template's 260 x 110 view box): the values and their running mean."""
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    across = max(steps[-1] - steps[0], 1)

    def points(ys):
        pairs = zip(steps, ys, strict=True)
        return " ".join(
            f"{34 + 222 * (s - steps[0]) / across:.1f},{96 - 90 * (y - low) / spread:.1f}" for s, y in pairs
        )

    labels = {"low": f"{low:.3g}", "high": f"{high:.3g}", "last_step": steps[-1]}
    return {"name": name, **labels, "points": points(values), "mean_points": points(running_mean(values))}


def run_curves(runs: dict[str, Path]) -> list[dict]:
    """The curves of stages, by the stage's name and run directory."""
    curves = []
    for stage, directory in runs.items():
        rows = read_metrics(Path(directory) / "metrics.jsonl")
        for key in CURVES[stage]:
            kept = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if kept:
                curves.append(curve(f"{stage}: {key}", [step for step, _ in kept], [value for _, value in kept]))
    return curves


def episode_card(record: dict, rewards: dict, overview: np.ndarray, pictures: Sequence[np.ndarray], boxes) -> dict:
    """One episode for the template."""
    return {
        "record": record,
        "rewards": [(name, f"{value:.2f}") for name, value in rewards.items()],
        "overview": data_url(with_boxes(overview, boxes)),
        "pictures": [data_url(enlarged(picture, 224)) for picture in pictures],
    }


def write_report(path: Path, **values) -> None:
    """Fills the template; everything the model wrote is escaped."""
    write_file(path, render("report.html.j2", colors=COLORS, **values))
