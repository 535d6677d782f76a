"""The GRPO objective (paper, Method): group advantages, clipped ratio, k3 KL."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np


def group_advantages(rewards: np.ndarray, group: int, eps: float = 1e-6) -> np.ndarray:
    """(r - mean) / (std + eps) within each group of consecutive rewards [N x G]; 0 where a group agrees."""
    grouped = np.asarray(rewards, np.float64).reshape(-1, group)
    centred = grouped - grouped.mean(axis=1, keepdims=True)
    return (centred / (grouped.std(axis=1, keepdims=True) + eps)).reshape(-1).astype(np.float32)


def k3_kl(logp, ref_logp):
    """The k3 estimate of KL(pi || pi_ref) per token: pi_ref/pi - log(pi_ref/pi) - 1, never negative."""
    log_ratio = ref_logp - logp
    return jnp.exp(log_ratio) - log_ratio - 1.0


def grpo_loss(logp, old_logp, advantages, mask, *, clip: float, kl_weight: float = 0.0, ref_logp=None):
    """-1/B sum_i 1/|o_i| sum_j [min(rho A, clip(rho, 1 - eps, 1 + eps) A) - kl_weight KL].

    Args:
        logp, old_logp: log-probabilities [B, T] of the sampled tokens, now and when sampled.
        advantages: [B].
        mask: [B, T], 1 on sampled tokens. Rows without any count as 0.
        ref_logp: under the reference policy; needed where kl_weight is not 0.

    Returns:
        the loss, and metrics: clip_fraction (of the tokens, averaged by row, how many ratios are outside), of it
        clip_fraction_low and _high, kl, ratio_max.
    """
    mask = mask.astype(jnp.float32)
    length_B = jnp.maximum(mask.sum(axis=1), 1.0)

    def per_sequence(values_BT):
        return ((values_BT * mask).sum(axis=1) / length_B).mean()

    # where the mask is 0 both are set equal, so that padding can't overflow
    ratio = jnp.exp(jnp.where(mask > 0, logp - old_logp, 0.0))
    advantage_BT = advantages[:, None]
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    surrogate = jnp.minimum(ratio * advantage_BT, clipped * advantage_BT)
    loss = -per_sequence(surrogate)
    low, high = per_sequence(1.0 - ratio > clip), per_sequence(ratio - 1.0 > clip)
    metrics = {
        "clip_fraction": low + high,
        "clip_fraction_low": low,
        "clip_fraction_high": high,
        "ratio_max": ratio.max(),
    }
    if kl_weight:
        kl = per_sequence(k3_kl(jnp.where(mask > 0, logp, 0.0), jnp.where(mask > 0, ref_logp, 0.0)))
        loss, metrics["kl"] = loss + kl_weight * kl, kl
    return loss, metrics
