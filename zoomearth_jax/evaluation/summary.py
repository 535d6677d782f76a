"""What came of an evaluation, in numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.data_pipeline.questions.question import LEVELS, Question
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.rl.records import are_correct, ious, masked_iou
from zoomearth_jax.rl.rewards.episodes import window_arrays


def summarize(
    questions: Sequence[Question], episodes: Sequence[Episode], episode: EpisodeConfig, match: str = "exact"
) -> dict:
    """Accuracy over all questions and per level, APO IoU, zoom rate and the rates of what went wrong.

    looks is the mean number of pictures that were seen; looks_missing and looks_spare are the means of what that lacks of the
    reference's number, and of what goes beyond it; None without any reference box.
    apo_iou is the mean IoU of raw boxes over the questions with a reference box, 0 where no valid box was named;
    apo_iou_window the same of the windows that were read, against those of the references.

    Args:
        episode: how a reference box becomes its window.
        match: when an answer is correct (see `EvaluateConfig`).
    """
    correct = are_correct(questions, episodes, match)
    levels = np.array([q.level for q in questions])
    has_box = np.array([q.box is not None for q in questions])
    iou = ious(questions, [e.box if e.zoomed else None for e in episodes])
    window_iou = masked_iou(*window_arrays(questions, episodes, episode))
    zoomed = np.array([e.zoomed for e in episodes])
    looks = np.array([len(e.looks) for e in episodes])
    missing = np.array([len(q.looks) for q in questions]) - looks
    return {
        "questions": len(questions),
        "accuracy": float(correct.mean()),
        "accuracy_by_level": {
            level: float(correct[levels == level].mean()) for level in LEVELS if (levels == level).any()
        },
        "apo_iou": float(iou[has_box].mean()) if has_box.any() else None,
        "apo_iou_window": float(window_iou[has_box].mean()) if has_box.any() else None,
        "zoom_rate": float(zoomed.mean()),
        "zoom_rate_without_reference": float(zoomed[~has_box].mean()) if not has_box.all() else None,
        "looks": float(looks.mean()),
        "looks_missing": float(np.maximum(missing, 0).mean()) if has_box.any() else None,
        "looks_spare": float(np.maximum(-missing, 0).mean()) if has_box.any() else None,
        "no_answer": float(np.mean([e.answer is None for e in episodes])),
        "broken_box": float(np.mean([e.box_reason not in ("", "absent") for e in episodes])),
        "truncated": float(np.mean([e.truncated for e in episodes])),
    }
