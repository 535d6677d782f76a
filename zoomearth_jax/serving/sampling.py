"""Draws tokens for rows that each have settings of their own, all of them traced: one program serves every mixture.

The results are those of `rl/rollout/sampling.py`, whose filters are static.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoomearth_jax.models.layers import Array
from zoomearth_jax.rl.policy import masked_logits


class Draws(NamedTuple):
    """How R rows draw.

    Attributes:
        keys_R: data of random keys, uint32 [R, words]. step_R: tokens that each has drawn with its key.
        temperature_R, top_k_R, top_p_R, penalty_R: see `SamplingConfig`.
    """

    keys_R: Array
    step_R: Array
    temperature_R: Array
    top_k_R: Array
    top_p_R: Array
    penalty_R: Array

    @classmethod
    def greedy(cls, rows: int, words: int) -> Draws:
        """Rows that take the likeliest tokens; the host fills others in."""
        ones = np.ones(rows, np.float32)
        zeros = np.zeros(rows, np.int32)
        return cls(np.zeros((rows, words), np.uint32), zeros, 0 * ones, zeros.copy(), ones, ones.copy())


def filtered_rows(logits_RV, draws: Draws, seen_RV):
    """Logits after each row's repetition penalty, top-k and top-p; what they leave out is -inf, the best never is.

    Args:
        logits_RV: tempered. seen_RV: the ids that each row holds.
    """
    penalty_R1 = draws.penalty_R[:, None]
    penalized_RV = jnp.where(logits_RV < 0, logits_RV * penalty_R1, logits_RV / penalty_R1)
    logits_RV = jnp.where(seen_RV, penalized_RV, logits_RV)
    sorted_RV = jnp.sort(logits_RV, descending=True)
    size = logits_RV.shape[1]
    places_R = jnp.where(draws.top_k_R > 0, jnp.minimum(draws.top_k_R, size), size) - 1
    least_R1 = jnp.take_along_axis(sorted_RV, places_R[:, None], axis=1)
    probs_RV = jax.nn.softmax(jnp.where(sorted_RV < least_R1, -jnp.inf, sorted_RV))
    better_RV = jnp.cumsum(probs_RV, axis=1) - probs_RV
    enough_RV = better_RV >= draws.top_p_R[:, None]
    whole_R1 = draws.top_p_R[:, None] >= 1
    inside_RV = (sorted_RV >= least_R1) & (whole_R1 | ~enough_RV)
    return jnp.where(
        logits_RV < jnp.min(sorted_RV, 1, keepdims=True, where=inside_RV, initial=jnp.inf), -jnp.inf, logits_RV
    )


def draw(logits_RV, draws: Draws, banned_ids: tuple[int, ...], seen_RV):
    """A token for each row, int32 [R]; temperature 0 takes the likeliest.

    Sorting and random numbers are left out where no row asks for them.
    """
    greedy_R = draws.temperature_R == 0
    tempered_RV = logits_RV / jnp.where(greedy_R, 1.0, draws.temperature_R)[:, None]
    tempered_RV = masked_logits(tempered_RV, banned_ids)
    filters = (draws.top_k_R > 0) | (draws.top_p_R < 1) | (draws.penalty_R != 1)
    kept_RV = jax.lax.cond(filters.any(), lambda x: filtered_rows(x, draws, seen_RV), lambda x: x, tempered_RV)

    def noise(_):
        keys_R = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(jnp.asarray(draws.keys_R)), draws.step_R)
        drawn_RV = jax.vmap(lambda key: jax.random.gumbel(key, kept_RV.shape[1:]))(keys_R)
        return jnp.where(greedy_R[:, None], 0.0, drawn_RV)

    return _best(kept_RV + jax.lax.cond(greedy_R.all(), lambda _: jnp.zeros_like(kept_RV), noise, None))


def _best(scores_RV):
    """The first id with each row's best score, int32 [R]; `argmax` takes 20 times as long on CPUs."""
    ids_V = jnp.arange(scores_RV.shape[1], dtype=jnp.int32)
    best_RV = scores_RV == scores_RV.max(axis=1, keepdims=True)
    return jnp.where(best_RV, ids_V, scores_RV.shape[1] - 1).min(axis=1)
