"""Episodes as plain records, and whether their answers are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.rl.episode import Episode, Turn
from zoomearth_jax.rl.rewards.answers import answer_scores
from zoomearth_jax.rl.rewards.boxes import box_iou
from zoomearth_jax.rl.rewards.episodes import box_arrays


def are_correct(questions: Sequence[Question], episodes: Sequence[Episode], match: str) -> np.ndarray:
    """Whether each answer scores full marks by `answer_scores`, bool [episodes]."""
    return answer_scores(match, [e.answer for e in episodes], [q.answer for q in questions]) == 1


def ious(questions: Sequence[Question], boxes) -> np.ndarray:
    """IoU of each box with its question's reference; 0 where either is missing."""
    return masked_iou(*box_arrays(questions, boxes))


def masked_iou(predicted: np.ndarray, reference: np.ndarray, applies: np.ndarray) -> np.ndarray:
    """IoU of boxes [episodes, 4] of one frame, by episode; 0 where it doesn't apply."""
    return np.asarray(box_iou(predicted, reference)) * applies


def sample_record(question: Question, episode: Episode, iou: float | None = None, match: str = "exact") -> dict:
    """What is kept of one episode; its `iou` (see `ious`) is computed where it isn't known yet."""
    return {
        "question": question.text,
        "level": question.level,
        "reference": question.answer,
        "reference_box": None if question.box is None else [round(c, 1) for c in question.box.corners],
        "answer": episode.answer,
        "correct": bool(are_correct([question], [episode], match)[0]),
        "iou": float(ious([question], [episode.box if episode.zoomed else None])[0]) if iou is None else iou,
        "box": None if episode.box is None else [round(c, 1) for c in episode.box.to(question.image.frame).corners],
        "box_reason": episode.box_reason,
        "turns": [turn_record(turn, question.image.frame) for turn in episode.turns],
        "truncated": episode.truncated,
    }


def turn_record(turn: Turn, image: Frame) -> dict:
    """What is kept of one turn: what was written, and where it asked for something the box that it named and the window that
    was read, both in px of the original, and its source if that is not the overview (see `Request`); and what came of the
    image tools that it called."""
    record: dict[str, Any] = {"text": turn.text}
    if turn.request and turn.request.box:
        record["box"] = [round(c, 1) for c in turn.request.box.to(image).corners]
    if turn.request and turn.request.source != "overview":
        record["source"] = turn.request.source
    if turn.picture is not None and turn.request and turn.request.window:
        record["window"] = list(turn.request.window.corners)
    if turn.outcomes:
        record["tools"] = [
            {"tool": outcome.tool, "error": outcome.error} if outcome.error else outcome.record
            for outcome in turn.outcomes
        ]
    return record
