"""Rewards of an episode: box IoU, region guidance, answer, format (paper, Method: r = r_IoU + r_RG + r_answer + 0.05 r_pattern),
and those that a spec adds: containment, necessity, several boxes, a judge, the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.data_pipeline.images.boxes import ANNOTATION_PX, Box, Frame, crop_window
from zoomearth_jax.data_pipeline.images.picture_map import frames_of
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.box_lists import listed_boxes
from zoomearth_jax.data_pipeline.text.protocol import follows_protocol, follows_reference, released_numbers
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.rl.rewards.answers import answer_scores
from zoomearth_jax.rl.rewards.boxes import FAR, box_rewards, containment_rewards, greedy_iou
from zoomearth_jax.rl.rewards.custom_rewards import custom_rewards
from zoomearth_jax.rl.rewards.judge import Judge
from zoomearth_jax.tools.tool import Request
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
        return _released_rewards(spec, asked, episodes, views, side)
    scores = []
    for looks in _paid_looks(spec, episodes):
        predicted, reference, applies = box_arrays(asked, [look and look.box for look in looks])
        compared = _window_arrays(asked, looks, episode)[:2] if spec.iou == "window" else None
        scores.append(box_rewards(spec, predicted, reference, applies, side, compared))
    iou, region = (np.max(kind, axis=0) for kind in zip(*scores, strict=True))
    return iou, region


def _paid_looks(spec: RewardSpec, episodes: Sequence[Episode]) -> list[list[Request | None]]:
    """The looks that box rewards are paid for: the episodes' last ones [1][B], or their first, second, … ones [looks][B]; None
    where an episode has none."""
    paid = [e.looks[-1:] if spec.looks == "last" else e.looks for e in episodes]
    return [[own[k] if k < len(own) else None for own in paid] for k in range(max([1, *map(len, paid)]))]


def _released_rewards(
    spec: RewardSpec, asked: Sequence[Question], episodes: Sequence[Episode], views: Sequence[Frame], side: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What `episode_box_rewards` gives, by the numbers of each first text."""
    numbers = [released_numbers(e.texts[0]) for e in episodes]
    predicted, reference, applies = _released_arrays(asked, numbers, views)
    iou, region = map(np.array, box_rewards(spec, predicted, reference, applies, side))
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
    """What `box_arrays` gives, of the windows that were read last and those that the reference boxes would have given."""
    return _window_arrays(questions, [e.looks[-1] if e.looks else None for e in episodes], episode)


def _window_arrays(questions: Sequence[Question], looks: Sequence[Request | None], episode: EpisodeConfig):
    predicted, reference, applies = box_arrays(questions, [look and look.window for look in looks])
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


def containment_scores(spec: RewardSpec, asked: Sequence[Question], episodes: Sequence[Episode]) -> np.ndarray:
    """Share of the reference box that lies in the window shown, float32 [B]; 0 without either."""
    windows = ([look and look.window for look in looks] for looks in _paid_looks(spec, episodes))
    return np.max([containment_rewards(*box_arrays(asked, one)) for one in windows], axis=0)


def necessity_scores(spec: RewardSpec, asked: Sequence[Question], episodes: Sequence[Episode]) -> np.ndarray:
    """What the number of looks costs, float32 [B]: 0 where as many were shown as the reference takes, else below."""
    spare = np.array([len(e.looks) - len(q.looks) for e, q in zip(episodes, asked, strict=True)], np.float32)
    return -np.where(spare > 0, spare * np.float32(spec.spare_cost), -spare * np.float32(spec.missing_cost))


def list_scores(asked: Sequence[Question], episodes: Sequence[Episode], views: Sequence[Frame]) -> np.ndarray:
    """IoU of all the boxes of a text with all the reference boxes (`greedy_iou`), float32 [B]; 0 without either.

    The text is the last one of the episode that lists boxes. The reference boxes are `Question.boxes`, or the one of its last
    look.

    Args:
        views: the frame of each episode's overview.
    """
    named = [
        next(filter(None, (listed_boxes(text, view) for text in reversed(e.texts))), [])
        for e, view in _pairs(episodes, views)
    ]
    wanted = [q.boxes or (q.box,) * (q.box is not None) for q in asked]
    counts = [max(len(n), len(w)) if w else 0 for n, w in _pairs(named, wanted)]
    arrays = [
        _padded([[b and b.to(q.image.frame) for b in own] for own, q in _pairs(boxes, asked)])
        for boxes in (named, wanted)
    ]
    return np.asarray(greedy_iou(*arrays, np.array(counts, np.float32)))


def _padded(boxes: Sequence[Sequence[Box | None]]) -> np.ndarray:
    """Corners [B, N, 4] of each row's boxes, 0 where there is none; N is a power of two, so that few shapes compile."""
    most = max([1, *map(len, boxes)])
    corners = np.zeros((len(boxes), 1 << (most - 1).bit_length(), 4), np.float32)
    for row, own in enumerate(boxes):
        for place, box in enumerate(own):
            corners[row, place] = box.corners if box else 0
    return corners


def _pairs(a: Sequence, b: Sequence) -> zip:
    return zip(a, b, strict=True)


def episode_rewards(
    spec: RewardSpec,
    questions: Sequence[Question],
    episodes: Sequence[Episode],
    rows: RowBuilder,
    judge: Judge | None = None,
) -> dict[str, np.ndarray]:
    """Rewards of each episode, [A x G] each: iou, region, answer, pattern, what else the spec has a weight for, the user's own,
    and their weighted sum `total`; with a judge also its JUDGE_NOTES.

    Where the judge's or one of the user's own doesn't apply it is NaN, and adds nothing to `total`.

    Args:
        questions: the A questions that were played.
        judge: asked for the spec's `judge`; needed where it names one.
    """
    group = len(episodes) // len(questions)
    asked = [q for q in questions for _ in range(group)]
    views = [rows.box_frame(q.image.frame) for q in asked]
    iou, region = episode_box_rewards(spec, asked, episodes, views, rows.episode)
    more: dict[str, Callable[[], np.ndarray]] = {
        "containment": lambda: containment_scores(spec, asked, episodes),
        "necessity": lambda: necessity_scores(spec, asked, episodes),
        "boxes": lambda: list_scores(asked, episodes, views),
    }
    rewards = {
        "iou": iou,
        "region": region,
        "answer": answer_scores(spec.answer_match, [e.answer for e in episodes], [q.answer for q in asked]),
        "pattern": pattern_rewards(spec, episodes, views, rows),
    } | {name: score() for name, score in more.items() if name in spec.weights}
    if "judge" in spec.weights:
        assert judge is not None, "the spec names a judge"
        rewards |= judge.scores(asked, episodes)
    rewards |= custom_rewards(spec, episodes, asked)
    rewards["total"] = sum(weight * np.nan_to_num(rewards[name]) for name, weight in spec.weights.items())
    return rewards
