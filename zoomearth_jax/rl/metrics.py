"""What happened in a rollout, in numbers. docs/metrics.md tells what each means."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from zoomearth_jax.configs.episode import RowLayout
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.rl.objective import disagreeing
from zoomearth_jax.rl.rewards.judge import JUDGE_NOTES
from zoomearth_jax.rl.rollout.engine import Trajectories

SPREAD = ("reward_", "advantage")  # how the names of what has a logged standard deviation begin


def episode_table(
    questions: Sequence[Question],
    played: Trajectories,
    rewards: Mapping[str, np.ndarray],
    advantages: np.ndarray,
    layout: RowLayout,
) -> dict[str, np.ndarray]:
    """One number per episode, float32 [A x G] each; NaN where it doesn't apply."""
    group = len(played.episodes) // len(questions)
    asked = [q for q in questions for _ in range(group)]
    episodes, target = played.episodes, played.replies.target
    has_reference = np.array([q.box is not None for q in asked])
    zoomed = np.array([e.zoomed for e in episodes])
    table = (
        {name if name in JUDGE_NOTES else f"reward_{name}": values for name, values in rewards.items()}
        | {
            "advantage": advantages,
            "zoom_rate": zoomed,
            "has_reference": has_reference,
            "looks": [len(e.looks) for e in episodes],
            "looks_missing": [max(0, len(q.looks) - len(e.looks)) for q, e in zip(asked, episodes, strict=True)],
            "looks_spare": [max(0, len(e.looks) - len(q.looks)) for q, e in zip(asked, episodes, strict=True)],
            "iou": np.where(has_reference, rewards["iou"], np.nan),
            "crop_area": [_share(e) for e in episodes],
            "parse_failure": [e.box_reason not in ("", "absent") for e in episodes],
            "no_answer": [e.answer is None for e in episodes],
            "truncated": [e.truncated for e in episodes],
            "tokens": target.sum(axis=1),
        }
        | {f"turn{k + 1}_tokens": _tokens(target[:, layout.turn(k)]) for k in range(layout.num_turns)}
    )
    return {name: np.asarray(values, np.float32) for name, values in table.items()}


def _tokens(target_BT: np.ndarray) -> np.ndarray:
    """Tokens that each episode wrote in a turn; NaN where it had none."""
    count_B = target_BT.sum(axis=1)
    return np.where(count_B > 0, count_B, np.nan)


def _share(episode: Episode) -> float:
    """The part of the image that the crop covers, 0 to 1."""
    if episode.window is None:
        return np.nan
    x1, y1, x2, y2 = episode.window.corners
    return (x2 - x1) * (y2 - y1) / (episode.window.frame.width * episode.window.frame.height)


def rollout_metrics(table: Mapping[str, np.ndarray], group: int) -> dict[str, float]:
    """Means of a table of all episodes, and some spreads; what applies to no episode is left out.

    Args:
        table: what `episode_table` gives; the tables of several processes one behind the other.
    """
    unknown = ("has_reference",) if table["has_reference"].any() else ("has_reference", "looks_missing", "looks_spare")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing
        metrics = {name: float(np.nanmean(values)) for name, values in table.items() if name not in unknown}
        spread = {f"{name}_std": float(x[~np.isnan(x)].std()) for name, x in table.items() if name.startswith(SPREAD)}
    teaching = float(disagreeing(table["reward_total"], group).mean())
    extra = {"flat_groups": 1 - teaching, "teaching_groups": teaching, "tokens_max": float(table["tokens"].max())}
    return {name: value for name, value in (metrics | spread | extra).items() if not np.isnan(value)}


def zoom_alarm(table: Mapping[str, np.ndarray]) -> str | None:
    """What is wrong where no episode zooms, or every one does, though some question of the step needs no crop."""
    rate = table["zoom_rate"].mean()
    if rate == 0:
        return "no episode zooms in"
    return "every episode zooms in" if rate == 1 and not table["has_reference"].all() else None
