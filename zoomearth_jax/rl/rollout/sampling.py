"""Draws tokens: temperature, banned ids, repetition penalty, top-k and top-p, with the results of HF's `generate`.

Each row draws from a key of its own, so that a sample depends neither on the other rows nor on its place among them.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.models.sharding import constrain, on_whole_rows, weight_shards
from zoomearth_jax.rl.policy import masked_logits


@functools.partial(jax.jit, static_argnames="turns")
def row_keys(key, seeds_B, turns: int):
    """Keys [turns, B], one for each turn of each row, from the call's key and the row's seed only."""
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, seeds_B)
    return jax.vmap(lambda key: jax.random.split(key, turns), out_axes=1)(keys_B)


def mark_seen(seen_BV, ids_BT, valid_BT):
    """Adds valid ids to what each row holds, bool [B, V]; None, where nobody asks, stays None."""
    if seen_BV is None:
        return None
    if ids_BT.shape[1] == 1:  # a scatter of one token would gather all rows in a sampler's layout
        return seen_BV | (valid_BT & (ids_BT == jnp.arange(seen_BV.shape[1])))
    return seen_BV.at[jnp.arange(len(ids_BT))[:, None], ids_BT].max(valid_BT)


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
    in_shards = filters == SamplingConfig().filters
    logits_BV = constrain(logits_BV, *(("batch", "vocab") if in_shards else ("rows", None)))
    logits_BV = masked_logits(logits_BV / jnp.where(greedy, 1.0, temperature), banned_ids)
    draw = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))
    noise_BV = jax.lax.cond(greedy, lambda _: jnp.zeros_like(logits_BV), draw, keys_B)  # a draw takes its time at B x V
    kept_BV = logits_BV
    if not in_shards:
        kept_BV = on_whole_rows(lambda logits, seen: filtered_logits(logits, filters, seen), logits_BV, seen_BV)
    return _best(kept_BV + noise_BV, logits_BV, weight_shards(logits_BV.shape[1]) if in_shards else 1)


def _best(scores_BV, logits_BV, shards: int):
    """The id of each row's best score and its log-probability under the logits [B].

    Each shard of the vocabulary gives its best and its part of the sum; these few numbers alone are exchanged.
    """
    batch, size = len(logits_BV), logits_BV.shape[1] // shards
    scores_BCV, logits_BCV = (x.reshape(batch, shards, size) for x in (scores_BV, logits_BV))
    place_BC = jnp.argmax(scores_BCV, axis=-1)
    own_BC = jnp.take_along_axis(logits_BCV, place_BC[..., None], axis=-1)[..., 0]
    top_BC = jnp.max(logits_BCV, axis=-1)
    top_BC = jnp.where(jnp.isfinite(top_BC), top_BC, 0.0)  # all ids of a shard may be banned
    sum_BC = jnp.exp(logits_BCV - top_BC[..., None]).sum(-1)
    id_BC = (place_BC + size * jnp.arange(shards)).astype(jnp.float32)  # exact up to 16 million
    parts = jnp.stack([scores_BCV.max(-1), id_BC, own_BC, top_BC, sum_BC])
    best_BC, id_BC, own_BC, top_BC, sum_BC = constrain(parts, None, "batch", None)
    first_B1 = jnp.argmax(best_BC, axis=1)[:, None]
    id_B, own_B = (jnp.take_along_axis(x, first_B1, axis=1)[:, 0] for x in (id_BC, own_BC))
    top_B = top_BC.max(1)
    return id_B.astype(jnp.int32), own_B - top_B - jnp.log((sum_BC * jnp.exp(top_BC - top_B[:, None])).sum(1))
