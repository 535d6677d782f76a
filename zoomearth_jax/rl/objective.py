"""The GRPO objective (paper, Method) and its variants. docs/objectives.md has the formulas and their papers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from zoomearth_jax.configs.objective import ObjectiveConfig

SAME = 1e-6  # standard deviation of a group's rewards that counts as none


def group_advantages(rewards: np.ndarray, group: int, kind: str = "std") -> np.ndarray:
    """Advantages within each group of consecutive rewards [A x G], as `ObjectiveConfig.advantage`; 0 where a group agrees.

    The standard deviation is the population's and gets 1e-6 added; in `std_trl` it is the sample's, of G - 1, and gets 1e-4.
    `rloo`, r - mean of the others, is G / (G - 1) (r - mean).
    """
    grouped = np.asarray(rewards, np.float64).reshape(-1, group)
    centred = grouped - grouped.mean(axis=1, keepdims=True)
    if kind in ("std", "std_trl"):
        ddof, eps = (0, 1e-6) if kind == "std" else (1, 1e-4)
        centred = centred / (grouped.std(axis=1, ddof=ddof, keepdims=True) + eps)
    elif kind == "rloo":
        centred = centred * group / (group - 1)
    return centred.reshape(-1).astype(np.float32)


def disagreeing(rewards: np.ndarray, group: int) -> np.ndarray:
    """Whether the rewards of each episode's group differ, bool [A x G]."""
    return np.repeat(np.reshape(rewards, (-1, group)).std(axis=1) >= SAME, group)


def kl_estimate(kind: str, logp, ref_logp):
    """An estimate of KL(pi || pi_ref) at each token that pi sampled, with x = log(pi_ref / pi): k1 is -x, k2 x^2 / 2,
    k3 e^x - x - 1. k2 and k3 are never negative (Schulman, Approximating KL Divergence)."""
    log_ratio = ref_logp - logp
    if kind == "k1":
        return -log_ratio
    return log_ratio**2 / 2 if kind == "k2" else jnp.exp(log_ratio) - log_ratio - 1.0


def row_weights(objective: ObjectiveConfig, mask, kept=None):
    """Weight of each row's tokens in the loss of a whole batch, float32 [B].

    Args:
        mask: [B, T], 1 on the tokens of the loss. Rows without any count as 0 in a mean over rows.
        kept: bool [B], rows that count at all; None for all.
    """
    length_B = mask.astype(jnp.float32).sum(axis=1)
    kept_B = jnp.ones_like(length_B) if kept is None else kept.astype(jnp.float32)
    if objective.aggregation == "token":
        return kept_B / jnp.maximum((length_B * kept_B).sum(), 1.0)
    if objective.aggregation == "constant":
        length_B = jnp.full_like(length_B, objective.max_tokens or mask.shape[1])
    return kept_B / (jnp.maximum(length_B, 1.0) * jnp.maximum(kept_B.sum(), 1.0))


def grpo_loss(
    objective: ObjectiveConfig,
    logp,
    old_logp,
    advantages,
    mask,
    weights,
    *,
    sampler_logp=None,
    ref_logp=None,
    entropy=None,
):
    """-sum over tokens of weight x [w f(rho, A) - kl_weight KL + entropy_weight H], with f(rho, A) = min(rho A, clip(rho) A) or
    another form, as `ObjectiveConfig.loss`.

    Args:
        logp, old_logp: log-probabilities [B, T] of the tokens, now and before the first update; the latter are constants, or the
            former behind a stop_gradient.
        advantages: of each row [B], or of each token [B, T].
        mask: [B, T], 1 on the tokens of the loss.
        weights: [B], of `row_weights`: those of a whole batch where these rows are a part of it, whose losses add up.
        sampler_logp: as sampled, [B, T]; needed with importance_cap.
        ref_logp: under the reference policy, [B, T]; needed where the KL is in the loss.
        entropy: the policy's entropy, [B, T]; needed with entropy_weight.

    Returns:
        the loss, and metrics, shares of tokens and means over them by row unless said otherwise: clip_fraction, how many
        ratios are outside, of it clip_fraction_low and _high; ratio_max; and where they are on clip_fraction_dual, kl,
        importance_weight, importance_truncated. cispo has no _low and _high, sapo no clip_fraction.
    """
    valid, mask = mask.astype(bool), mask.astype(jnp.float32)
    length_B = jnp.maximum(mask.sum(axis=1), 1.0)

    def mean(values_BT):
        return ((values_BT.astype(jnp.float32) * mask).sum(axis=1) / length_B).mean()

    def total(values_BT):
        return ((values_BT * mask).sum(axis=1) * weights).sum()

    def difference(a, b):  # 0 where the mask is, so that padding can't overflow
        return jnp.where(valid, a - b, 0.0)

    log_ratio = difference(logp, old_logp)
    if objective.ratio == "sequence":
        log_ratio = jnp.broadcast_to((log_ratio.sum(axis=1) / length_B)[:, None], logp.shape)
    ratio = jnp.exp(log_ratio)
    advantage = advantages[:, None] if advantages.ndim == 1 else advantages
    if objective.loss == "cispo":
        surrogate, metrics = _cispo(objective, ratio, advantage, jnp.where(valid, logp, 0.0), mean)
    elif objective.loss == "sapo":
        surrogate, metrics = _sapo(objective, ratio, advantage)
    else:
        surrogate, metrics = _clipped(objective, ratio, advantage, mean)
    if objective.importance_cap:
        importance = difference(old_logp, sampler_logp)
        if objective.importance_mode.startswith("sequence"):
            importance = jnp.broadcast_to(importance.sum(axis=1, keepdims=True), logp.shape)
        importance = jnp.exp(importance)
        over = importance > objective.importance_cap
        masks = objective.importance_mode.endswith("mask")
        weight = jnp.where(over, 0.0 if masks else objective.importance_cap, importance)
        surrogate = surrogate * weight
        metrics["importance_weight"], metrics["importance_truncated"] = mean(weight), mean(over)
    loss = -total(surrogate)
    if objective.kl_in_loss:
        kl = kl_estimate(objective.kl, jnp.where(valid, logp, 0.0), jnp.where(valid, ref_logp, 0.0))
        loss, metrics["kl"] = loss + objective.kl_weight * total(kl), mean(kl)
    if objective.entropy_weight:
        loss = loss - objective.entropy_weight * total(entropy)
    return loss, metrics


def _clipped(objective: ObjectiveConfig, ratio, advantage, mean):
    """Each token's min(rho A, clip(rho) A), for A < 0 not below dual_clip x A; and how often what was clipped."""
    clipped = jnp.clip(ratio, 1.0 - objective.clip_low, 1.0 + objective.clip_high)
    surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
    low, high = mean(1.0 - ratio > objective.clip_low), mean(ratio - 1.0 > objective.clip_high)
    metrics = {
        "clip_fraction": low + high,
        "clip_fraction_low": low,
        "clip_fraction_high": high,
        "ratio_max": ratio.max(),
    }
    if objective.dual_clip:
        floor = objective.dual_clip * advantage
        metrics["clip_fraction_dual"] = mean((advantage < 0) & (surrogate < floor))
        surrogate = jnp.where(advantage < 0, jnp.maximum(surrogate, floor), surrogate)
    return surrogate, metrics


def _cispo(objective: ObjectiveConfig, ratio, advantage, logp, mean):
    """Each token's min(rho, cispo_max) A log pi, where only log pi has a gradient; and how often what was cut."""
    weight = jax.lax.stop_gradient(jnp.minimum(ratio, objective.cispo_max))
    metrics = {"clip_fraction": mean(ratio > objective.cispo_max), "ratio_max": ratio.max()}
    return weight * advantage * logp, metrics


def _sapo(objective: ObjectiveConfig, ratio, advantage):
    """Each token's 4 / tau sigmoid(tau (rho - 1)) A, whose gradient on policy is that of rho A."""
    tau = jnp.where(advantage > 0, objective.sapo_temperature_pos, objective.sapo_temperature_neg)
    return 4.0 / tau * jax.nn.sigmoid(tau * (ratio - 1.0)) * advantage, {"ratio_max": ratio.max()}


def distilled_advantages(objective: ObjectiveConfig, advantages, teacher_logp, old_logp, distilled):
    """Advantages of tokens [B, T] with self-distillation: A + distill_weight x d where `distilled`, else A.

    d = log pi_teacher - log pi_old, clipped to -distill_clip … distill_clip. Its mean over the policy's samples is -KL(pi_old ||
    pi_teacher), so this is on-policy distillation of the reverse KL, one sampled token at a time.

    Args:
        advantages: [B].
        teacher_logp, old_logp: [B, T], without gradients.
        distilled: bool [B, T].

    Returns:
        the advantages, and d, 0 where nothing is distilled.
    """
    gap = jnp.where(distilled, teacher_logp - old_logp, 0.0)
    gap = jnp.clip(gap, -objective.distill_clip, objective.distill_clip)
    return advantages[:, None] + objective.distill_weight * gap, gap
