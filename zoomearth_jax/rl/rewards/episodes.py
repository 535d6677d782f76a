"""Rewards of an episode: box IoU, region guidance, answer, format (paper, Method: r = r_IoU + r_RG + r_answer + 0.05 r_pattern)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.data_pipeline.images.boxes import ANNOTATION_PX, Box, Frame, crop_window
from zoomearth_jax.data_pipeline.images.picture_map import frames_of
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.protocol import follows_protocol, follows_reference, released_numbers
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.rl.rewards.answers import answer_scores
from zoomearth_jax.rl.rewards.boxes import FAR, box_rewards
from zoomearth_jax.rl.rewards.custom_rewards import custom_rewards
from zoomearth_jax.tools.zoom import shown_maps


def box_arrays(questions: Sequence[Question], boxes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted and reference corners [B, 4] in px of the original, and where both exist [B]."""
    applies = np.zeros(len(questions), bool)
    predicted, reference = np.zeros((2, len(questions), 4), np.float32)
    for i, (box, question) in enumerate(zip(boxes, questions, strict=True)):
        if box is not None and question.box is not None:
            applies[i] = True
            predicted[i] = box.to(question.image.frame).corners
            reference[i] = question.box.corners
    return predicted, reference, applies


def episode_box_rewards(
    spec: RewardSpec,
    asked: Sequence[Question],
    episodes: Sequence[Episode],
    views: Sequence[Frame],
    episode: EpisodeConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """IoU and region rewards of episodes, float32 [B] each.

    Args:
        asked: each episode's question.
        views: the frame of each episode's overview.
        episode: how a reference box becomes its window.
    """
    side = np.array([max(q.image.frame.width, q.image.frame.height) for q in asked], np.float32)
    if spec.iou == "reference":
        numbers = [released_numbers(e.texts[0]) for e in episodes]
        predicted, reference, applies = _released_arrays(asked, numbers, views)
    else:
        predicted, reference, applies = box_arrays(asked, [e.box if e.zoomed else None for e in episodes])
    windows = window_arrays(asked, episodes, episode)[:2] if spec.iou == "window" else None
    iou, region = map(np.array, box_rewards(spec, predicted, reference, applies, side, windows))
    if spec.iou == "reference":
        for i in np.flatnonzero(applies).tolist():  # the release compares the numbers before it converts their frames
            if numbers[i] == _annotated(asked[i]):
                iou[i] = region[i] = 1.0
    return iou, region


def _released_arrays(asked: Sequence[Question], numbers: Sequence[Sequence[float]], views: Sequence[Frame]):
    """What `box_arrays` gives, of the numbers that texts name, in px of the views: four that are near count, whatever they are."""
    boxes = [
        Box(n[0], n[1], n[2], n[3], view) if len(n) == 4 and all(abs(x) < FAR for x in n) else None
        for n, view in zip(numbers, views, strict=True)
    ]
    return box_arrays(asked, boxes)


def _annotated(question: Question) -> list[float]:
    """The numbers of a reference box as LRS-GRO gives them: whole px of the image at a longest side of 1024."""
    side = max(question.image.frame.width, question.image.frame.height)
    return [float(round(corner * ANNOTATION_PX / side)) for corner in question.box.corners] if question.box else []


def window_arrays(questions: Sequence[Question], episodes: Sequence[Episode], episode: EpisodeConfig):
    """What `box_arrays` gives, of the windows that were read and those that the reference boxes would have given."""
    predicted, reference, applies = box_arrays(questions, [e.window for e in episodes])
    for i, question in enumerate(questions):
        if applies[i] and question.box is not None:
            least = episode.least_window(question.looks[-1].source)
            reference[i] = crop_window(question.box, least, episode.crop).corners
    return predicted, reference, applies


def pattern_rewards(spec: RewardSpec, episodes: Sequence[Episode], views, rows: RowBuilder) -> np.ndarray:
    """Format rewards, float32 [B]: 1 where an episode has the form that the spec's `pattern` asks for.

    Args:
        views: the frame of each episode's overview.
    """

    def shown(episode: Episode) -> list[Frame | None] | None:
        return frames_of(shown_maps(rows, episode.looks)) if rows.episode.several else None

    if spec.pattern == "reference":
        return np.array([follows_reference(e.texts) for e in episodes], np.float32)
    return np.array([follows_protocol(e.texts, v, shown(e)) for e, v in zip(episodes, views, strict=True)], np.float32)


def episode_rewards(
    spec: RewardSpec, questions: Sequence[Question], episodes: Sequence[Episode], rows: RowBuilder
) -> dict[str, np.ndarray]:
    """Rewards of each episode, [A x G] each: iou, region, answer, pattern, the user's own, and their weighted sum `total`.

    Where one of the user's own doesn't apply it is NaN, and adds nothing to `total`.

    Args:
        questions: the A questions that were played.
    """
    group = len(episodes) // len(questions)
    asked = [q for q in questions for _ in range(group)]
    views = [rows.box_frame(q.image.frame) for q in asked]
    iou, region = episode_box_rewards(spec, asked, episodes, views, rows.episode)
    rewards = {
        "iou": iou,
        "region": region,
        "answer": answer_scores(spec.answer_match, [e.answer for e in episodes], [q.answer for q in asked]),
        "pattern": pattern_rewards(spec, episodes, views, rows),
    } | custom_rewards(spec, episodes, asked)
    rewards["total"] = sum(weight * np.nan_to_num(rewards[name]) for name, weight in spec.weights.items())
    return rewards
