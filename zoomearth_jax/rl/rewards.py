"""Rewards of an episode: box IoU, region guidance, answer, format (paper, Method: r = r_IoU + r_RG + r_answer + 0.05 r_pattern)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from zoomearth_jax.data_pipeline.protocol import follows_protocol, is_correct
from zoomearth_jax.data_pipeline.questions import Question
from zoomearth_jax.data_pipeline.rows import RowBuilder
from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.rollout import Trajectories
from zoomearth_jax.rl.wordnet import answer_scores


@dataclasses.dataclass(frozen=True)
class RewardSpec:
    """Weights and shapes; printed, logged and saved with every run.

    Attributes:
        iou_weight, region_weight, answer_weight, pattern_weight: as in the paper (the released code has 1 for the pattern).
        region_alpha, region_eps: r_RG = sigmoid(alpha / (distance + eps)), 0 without a box; distance between centres.
        region_unit: of the distance: px of the original, or the image's longer side (`side`).
        answer_match: `exact` (1 or 0, after `normalize`), or `wordnet`, the paper's: graded by path similarity.
        version: of the meaning of all this.
    """

    iou_weight: float = 1.0
    region_weight: float = 1.0
    answer_weight: float = 1.0
    pattern_weight: float = 0.05
    region_alpha: float = 200.0
    region_eps: float = 0.2
    region_unit: Literal["px", "side"] = "px"
    answer_match: Literal["exact", "wordnet"] = "exact"
    version: int = 1

    def __post_init__(self):
        if self.region_unit not in ("px", "side"):
            raise UserError(f"reward spec: region_unit must be 'px' or 'side', not {self.region_unit!r}")
        if self.answer_match not in ("exact", "wordnet"):
            raise UserError(f"reward spec: answer_match must be 'exact' or 'wordnet', not {self.answer_match!r}")
        if self.region_eps <= 0:
            raise UserError("reward spec: region_eps must be positive")


def box_iou(a, b):
    """Intersection over union of boxes [..., 4] (x1, y1, x2, y2) in one frame: float32 [...]; 0 where either has no area."""
    sides_a, sides_b = (jnp.maximum(x[..., 2:] - x[..., :2], 0.0) for x in (a, b))
    overlap = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    intersection = jnp.prod(jnp.maximum(overlap, 0.0), axis=-1)
    area_a, area_b = jnp.prod(sides_a, -1), jnp.prod(sides_b, -1)
    union = area_a + area_b - intersection
    return jnp.where((area_a > 0) & (area_b > 0), intersection / jnp.where(union > 0, union, 1.0), 0.0)


def region_reward(a, b, alpha: float, eps: float, unit):
    """Region guidance sigmoid(alpha / (d + eps)), d the distance between the centres of boxes [..., 4] over `unit` [...].

    As printed in the paper it is above 0.5 for every box: its gradient lies between near and far, its offset in whether
    there is a box at all.
    """
    centre_a, centre_b = ((x[..., :2] + x[..., 2:]) / 2 for x in (a, b))
    distance = jnp.sqrt(jnp.sum((centre_a - centre_b) ** 2, axis=-1)) / unit
    return jax.nn.sigmoid(alpha / (distance + eps))


@functools.partial(jax.jit, static_argnames=("alpha", "eps"))
def box_rewards(predicted, reference, applies, side, *, alpha: float, eps: float):
    """IoU and region rewards of a batch.

    Args:
        predicted, reference: [B, 4] in px of the original.
        applies: bool [B], there is a valid predicted box and a reference; both rewards are 0 elsewhere.
        side: [B], unit of the distance.

    Returns:
        float32 [B] each.
    """
    iou = jnp.where(applies, box_iou(predicted, reference), 0.0)
    return iou, jnp.where(applies, region_reward(predicted, reference, alpha, eps, side), 0.0)


def box_arrays(questions: Sequence[Question], boxes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted and reference corners [B, 4] in px of the original, and where both exist [B]."""
    applies = np.array([box is not None and q.box is not None for box, q in zip(boxes, questions, strict=True)])
    predicted, reference = np.zeros((2, len(questions), 4), np.float32)
    for i in np.flatnonzero(applies):
        predicted[i] = boxes[i].to(questions[i].image.frame).corners
        reference[i] = questions[i].box.corners
    return predicted, reference, applies


def answer_rewards(spec: RewardSpec, answers: Sequence[str | None], references: Sequence[str]) -> np.ndarray:
    """float32 [B], by the spec's `answer_match`; 0 without an answer."""
    if spec.answer_match == "wordnet":
        return answer_scores(answers, references)
    return np.array([is_correct(a, r) for a, r in zip(answers, references, strict=True)], np.float32)


def episode_rewards(
    spec: RewardSpec, questions: Sequence[Question], played: Trajectories, rows: RowBuilder
) -> dict[str, np.ndarray]:
    """Rewards of each episode, [N x G] each: iou, region, answer, pattern, and their weighted sum `total`.

    Args:
        questions: the N questions that were played.
    """
    group = len(played.episodes) // len(questions)
    asked = [q for q in questions for _ in range(group)]
    views = [rows.view_frame(view) for view in played.overviews for _ in range(group)]
    boxes = [e.box if e.zoomed else None for e in played.episodes]
    predicted, reference, applies = box_arrays(asked, boxes)
    longer = np.array([max(q.image.frame.width, q.image.frame.height) for q in asked], np.float32)
    unit = longer if spec.region_unit == "side" else np.ones_like(longer)
    iou, region = box_rewards(predicted, reference, applies, unit, alpha=spec.region_alpha, eps=spec.region_eps)
    rewards = {
        "iou": np.asarray(iou),
        "region": np.asarray(region),
        "answer": answer_rewards(spec, [e.answer for e in played.episodes], [q.answer for q in asked]),
        "pattern": np.array(
            [follows_protocol(e.stage1, e.stage2, view) for e, view in zip(played.episodes, views, strict=True)],
            np.float32,
        ),
    }
    rewards["total"] = sum(getattr(spec, f"{name}_weight") * values for name, values in rewards.items())
    return rewards
