"""Attention over a row's own tokens and, when decoding, over a read-only cache of earlier slots."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row of masked scores stays free of NaN


class KVCache(NamedTuple):
    """Keys and values of slots that every query of the segment may see, where valid.

    k, v: [..., B, S, K, H] (a leading L while stacked over layers); valid_BS: bool.
    """

    k: jax.Array
    v: jax.Array
    valid_BS: jax.Array


def _scores(q_BTKGH, k_BSKH):
    return jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)


def decoder_attention(q_BTNH, k_BTKH, v_BTKH, valid_BT, past: KVCache | None = None):
    """Causal grouped-query attention within a segment, plus all valid slots of the past.

    The past is read, never copied: its scores are computed apart and joined before the softmax.

    Args:
        q_BTNH, k_BTKH, v_BTKH: rotated queries and keys, and values, of the segment.
        valid_BT: bool, which of the segment's tokens may be attended to.
        past: one layer's cache of the slots before the segment.

    Returns:
        [B, T, N, H] in the type of q. The softmax is in float32.
    """
    batch, length, num_heads, head_dim = q_BTNH.shape
    num_kv_heads = k_BTKH.shape[2]
    q_BTKGH = q_BTNH.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, head_dim) * head_dim**-0.5
    causal_TT = jnp.tril(jnp.ones((length, length), bool))
    scores = jnp.where((causal_TT & valid_BT[:, None, :])[:, None, None], _scores(q_BTKGH, k_BTKH), MASKED)
    if past is None:
        weights = jax.nn.softmax(scores, axis=-1).astype(v_BTKH.dtype)
        out = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v_BTKH)
        return out.reshape(q_BTNH.shape)
    past_scores = jnp.where(past.valid_BS[:, None, None, None, :], _scores(q_BTKGH, past.k), MASKED)
    weights = jax.nn.softmax(jnp.concatenate([past_scores, scores], axis=-1), axis=-1).astype(v_BTKH.dtype)
    past_weights, own_weights = jnp.split(weights, [past.k.shape[1]], axis=-1)
    out = jnp.einsum("BKGTS,BSKH->BTKGH", past_weights, past.v) + jnp.einsum("BKGTS,BSKH->BTKGH", own_weights, v_BTKH)
    return out.reshape(q_BTNH.shape)


def masked_attention(q_BTNH, k_BSNH, v_BSNH, valid_BS):
    """Bidirectional attention over the valid keys of each row, softmax in float32; the vision encoder's blocks."""
    scores = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH * q_BTNH.shape[-1] ** -0.5, k_BSNH, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(valid_BS[:, None, None, :], scores, MASKED), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", weights.astype(v_BSNH.dtype), v_BSNH)
