"""What GRPO maximises: the paper's objective, and its published variants as switches. docs/objectives.md has the formulas."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args, get_type_hints

from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Advantages, ratio, loss, KL, distillation and how tokens add up. The defaults are the paper's.

    Attributes:
        advantage: from a reward r in its group: `std` (r - mean) / std (GRPO), `std_trl` the same with the sample's deviation
            and 1e-4 as in TRL, `mean` r - mean (Dr. GRPO), `rloo` r - mean of the others (RLOO).
        flat_groups: groups whose rewards are all the same: `keep` them, for their KL and their share of the mean, or `drop`
            them from the loss and from what it is divided by.
        ratio: that of each `token`, or of the `sequence`: the geometric mean of its tokens' ratios (GSPO).
        loss: what a token's ratio and advantage A become: `clip` min(ratio A, clip(ratio) A) (PPO, GRPO), `cispo` the ratio, cut at
            cispo_max and without gradient, x A x log-probability (MiniMax-M1), `sapo` A x a gate that the ratio closes
            softly (SAPO).
        aggregation: `sequence` is the mean over episodes of their tokens' means (GRPO), `token` the mean over all tokens of a
            step (DAPO), `constant` the mean over episodes of their tokens' sums over max_tokens (Dr. GRPO).
        max_tokens: what `constant` divides by; 0 for the slots of an episode's text.
        clip_low, clip_high: the ratio is clipped to 1 - clip_low … 1 + clip_high (DAPO: 0.2 and 0.28).
        dual_clip: where the advantage A is negative, no token's term falls below dual_clip x A; 0 is off (3 is usual).
        cispo_max: the ratios of cispo are cut at this (ScaleRL: 5).
        sapo_temperature_pos, sapo_temperature_neg: how fast sapo's gate closes where the advantage is positive, and where it is
            not.
        kl_weight: weight of the KL against the reference (paper: 0.04); 0 leaves the reference out.
        kl: its estimator, `k1`, `k2` or `k3` (Schulman).
        kl_in: the `loss`, a token, or the `reward`, of which the sum over the episode's tokens is subtracted.
        entropy_weight: weight of the policy's entropy, which is then maximised too; 0 is off.
        importance_cap: the ratio is taken of the policy before the rollout's first update as the trainer computes it, and
            terms are weighted by its ratio to the sampler's, cut at this; 0 takes the ratio of the sampler's
            probabilities, without weights.
        importance_mode: the ratio to the sampler's policy is that of each token (`token_truncate`, `token_mask`), or the product of
            an episode's (`sequence_truncate`, `sequence_mask`); above importance_cap it counts as the cap where it is
            truncated, and as 0 where it is masked.
        mask: the tokens of the loss: those `sampled`, or as in the released code (`reference`) the crop's too, which
            the policy did not write; probabilities are then over all ids.
        distill_weight: weight of on-policy self-distillation; 0 is off. The teacher is a moving average of the policy that sees the
            crop of the reference box in place of the last picture. Log-probability of the teacher less that of the
            policy is added to the advantage of each token of the last turn.
        distill_decay: share of the average that stays at each optimizer step (0.95 is usual); 0 makes the policy its own teacher.
        distill_clip: the difference of log-probabilities is clipped to -distill_clip … distill_clip, in nats.
        distill_gate: the episodes that are distilled: `all`, those with a `wrong` answer (reward below 1), or a `right` one. Those
            that saw no picture, or whose question has no reference box, never are.
    """

    advantage: Literal["std", "std_trl", "mean", "rloo"] = "std"
    flat_groups: Literal["keep", "drop"] = "keep"
    ratio: Literal["token", "sequence"] = "token"
    loss: Literal["clip", "cispo", "sapo"] = "clip"
    aggregation: Literal["sequence", "token", "constant"] = "sequence"
    max_tokens: int = 0
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    cispo_max: float = 5.0
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    kl_weight: float = 0.04
    kl: Literal["k1", "k2", "k3"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    entropy_weight: float = 0.0
    importance_cap: float = 0.0
    importance_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "token_truncate"
    mask: Literal["sampled", "reference"] = "sampled"
    distill_weight: float = 0.0
    distill_decay: float = 0.95
    distill_clip: float = 2.0
    distill_gate: Literal["all", "wrong", "right"] = "wrong"

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), get_args(hints[field.name])
            if choices and value not in choices:
                raise UserError(f"objective config: {field.name} must be {' or '.join(choices)}, not {value!r}")
            if field.type == "float" and not math.isfinite(value):
                raise UserError(f"objective config: {field.name} must be finite, not {value!r}")
        for ok, message in (
            (0 < self.clip_low <= 1, "clip_low must be above 0 and at most 1"),
            (self.clip_high > 0, "clip_high must be positive"),
            (self.dual_clip == 0 or self.dual_clip > 1, "dual_clip must be above 1; 0 turns it off"),
            (
                self.loss == "clip" or (self.clip_low, self.clip_high, self.dual_clip) == (0.2, 0.2, 0),
                "clip_low, clip_high and dual_clip go with loss clip; cispo has cispo_max, sapo its temperatures",
            ),
            (self.cispo_max >= 1, "cispo_max must be at least 1, the ratio on policy"),
            (min(self.sapo_temperature_pos, self.sapo_temperature_neg) > 0, "sapo_temperature_* must be positive"),
            (self.kl_weight >= 0, "kl_weight must not be negative; 0 turns it off"),
            (self.entropy_weight >= 0, "entropy_weight must not be negative; 0 turns it off"),
            (self.importance_cap >= 0, "importance_cap must not be negative; 0 turns it off"),
            (
                self.importance_mode == "token_truncate" or self.importance_cap > 0,
                f"importance_mode {self.importance_mode} needs importance_cap, such as 3",
            ),
            (self.distill_weight >= 0, "distill_weight must not be negative; 0 turns it off"),
            (0 <= self.distill_decay < 1, "distill_decay must be at least 0 and below 1"),
            (self.distill_clip > 0, "distill_clip must be positive"),
            (self.max_tokens >= 0, "max_tokens must not be negative; 0 takes the slots of an episode's text"),
            (
                self.mask == "sampled" or not (self.importance_cap or self.kl_in_reward or self.distill_weight),
                "mask reference goes neither with importance_cap nor with kl_in reward nor with distill_weight: nobody sampled "
                "the crop's tokens",
            ),
        ):
            if not ok:
                raise UserError(f"objective config: {message}")

    @property
    def kl_in_loss(self) -> bool:
        """Whether each update runs the reference policy."""
        return self.kl_weight > 0 and self.kl_in == "loss"

    @property
    def kl_in_reward(self) -> bool:
        """Whether each rollout is scored by the reference policy."""
        return self.kl_weight > 0 and self.kl_in == "reward"

    @property
    def old_by_trainer(self) -> bool:
        """Whether the ratio's old policy is the trainer's own computation, not the sampler's."""
        return self.importance_cap > 0 or self.mask == "reference"
