"""Draws tokens: temperature, banned ids, repetition penalty, top-k and top-p, with the results of HF's `generate`.

Each row draws from a key of its own, so that a sample depends neither on the other rows nor on its place among them.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.models.sharding import constrain
from zoomearth_jax.rl.policy import masked_logits


@functools.partial(jax.jit, static_argnames="turns")
def row_keys(key, seeds_B, turns: int):
    """Keys [turns, B], one for each turn of each row, from the call's key and the row's seed only."""
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, seeds_B)
    return jax.vmap(lambda key: jax.random.split(key, turns), out_axes=1)(keys_B)


def mark_seen(seen_BV, ids_BT, valid_BT):
    """Adds valid ids to what each row holds, bool [B, V]; None, where nobody asks, stays None."""
    return None if seen_BV is None else seen_BV.at[jnp.arange(len(ids_BT))[:, None], ids_BT].max(valid_BT)


def filtered_logits(logits_BV, filters: SamplingConfig, seen_BV=None):
    """Tempered logits after repetition penalty, top-k and top-p; what they leave out is -inf, the best never is.

    Tokens tied with the last one that top-k or top-p keeps are kept too. (HF does so for top-k; for top-p it keeps those
    that its sort happens to put first.)

    Args:
        seen_BV: what the penalty is for; None turns it off. HF's penalty comes before the temperature; it multiplies, so
            the order doesn't matter.
    """
    if seen_BV is not None:
        penalty = filters.repetition_penalty
        penalized_BV = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
        logits_BV = jnp.where(seen_BV, penalized_BV, logits_BV)
    if filters.top_k:
        best, _ = jax.lax.top_k(logits_BV, min(filters.top_k, logits_BV.shape[-1]))
        logits_BV = jnp.where(logits_BV < best[:, -1:], -jnp.inf, logits_BV)
    if filters.top_p < 1:
        sorted_BV = jnp.sort(logits_BV, descending=True)
        probs_BV = jax.nn.softmax(sorted_BV)
        better_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
        least_B1 = jnp.min(sorted_BV, axis=-1, keepdims=True, where=better_BV < filters.top_p, initial=jnp.inf)
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    return logits_BV


def sample(logits_BV, keys_B, temperature, banned_ids, filters: SamplingConfig, seen_BV=None):
    """A token per row and its log-probability [B]; temperature 0 takes the likeliest, with log-probabilities at 1.

    The log-probability is the policy's own, at this temperature and without the banned ids, before the filters: what
    `policy.token_logprobs` gives again. With a filter on it is not that of the distribution that was drawn from, so GRPO
    uses none.

    Args:
        temperature: may be traced.
        filters: top-k, top-p and repetition penalty; its temperature is not read.
        seen_BV: see `filtered_logits`.
    """
    greedy = temperature == 0
    # filters sort whole rows, each on the device that has the row; else the vocabulary stays where its shards are
    logits_BV = constrain(logits_BV, *(("batch", "vocab") if filters == SamplingConfig().filters else ("rows", None)))
    logits_BV = masked_logits(logits_BV / jnp.where(greedy, 1.0, temperature), banned_ids)
    draw = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))
    noise_BV = jax.lax.cond(greedy, lambda _: jnp.zeros_like(logits_BV), draw, keys_B)  # a draw takes its time at B x V
    kept_BV = filtered_logits(logits_BV, filters, seen_BV)
    ids_B = jnp.argmax(kept_BV + noise_BV, axis=-1)
    logp_BV = jax.nn.log_softmax(logits_BV)
    is_drawn_BV = ids_B[:, None] == jnp.arange(logits_BV.shape[1])  # a sum over the vocabulary stays on its shards
    return ids_B, jnp.sum(jnp.where(is_drawn_BV, logp_BV, 0.0), axis=-1)
