"""Attention over a row's own tokens and, when decoding, over a read-only cache of earlier slots."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row of masked scores stays free of NaN


class KVCache(NamedTuple):
    """Keys and values of slots that every query of the segment may see, where valid.

    k, v: [..., B, K, S, H] (a leading L while stacked over layers); valid_BS: bool.
    """

    k: jax.Array
    v: jax.Array
    valid_BS: jax.Array


def decoder_attention(q_BTNH, k_BKTH, v_BKTH, valid_BT, past: KVCache | None = None, backend: str = "auto"):
    """Causal grouped-query attention within a segment, plus all valid slots of the past.

    The past is read, never copied: its scores are computed apart and joined before the softmax.

    Args:
        q_BTNH, k_BKTH, v_BKTH: rotated queries and keys, and values, of the segment.
        valid_BT: bool, which of the segment's tokens may be attended to.
        past: one layer's cache of the slots before the segment.

    Returns:
        [B, T, N, H] in the type of q. The softmax is in float32.
    """
    batch, length, num_heads, head_dim = q_BTNH.shape
    num_kv_heads = k_BKTH.shape[1]
    group = num_heads // num_kv_heads  # query heads that share a key-value head: one matrix product with its keys
    q = q_BTNH.reshape(batch, length, num_kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4) * head_dim**-0.5
    q = q.reshape(batch, num_kv_heads, group * length, head_dim)

    def scores(k_BKSH, visible):
        """float32 [B, K, group x T, S]; visible broadcasts against [B, 1, T, S]."""
        out = jnp.einsum("BKQH,BKSH->BKQS", q, k_BKSH, preferred_element_type=jnp.float32)
        return jnp.where(jnp.tile(visible, (1, 1, group, 1)), out, MASKED)

    causal_TT = jnp.tril(jnp.ones((length, length), bool))
    own = scores(k_BKTH, (causal_TT & valid_BT[:, None, :])[:, None])
    if past is None:
        out = jnp.einsum("BKQS,BKSH->BKQH", jax.nn.softmax(own, axis=-1).astype(v_BKTH.dtype), v_BKTH)
    else:
        slots = past.k.shape[2]
        before = scores(past.k, jnp.broadcast_to(past.valid_BS[:, None, None, :], (batch, 1, length, slots)))
        weights = jax.nn.softmax(jnp.concatenate([before, own], axis=-1), axis=-1).astype(v_BKTH.dtype)
        past_weights, own_weights = jnp.split(weights, [slots], axis=-1)
        out = jnp.einsum("BKQS,BKSH->BKQH", past_weights, past.v) + jnp.einsum("BKQS,BKSH->BKQH", own_weights, v_BKTH)
    out = out.reshape(batch, num_kv_heads, group, length, head_dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(q_BTNH.shape)


def masked_attention(q_BTNH, k_BSNH, v_BSNH, valid_BS, backend: str = "auto"):
    """Bidirectional attention over the valid keys of each row, softmax in float32; the vision encoder's blocks."""
    scores = jnp.einsum(
        "BTNH,BSNH->BNTS", q_BTNH * q_BTNH.shape[-1] ** -0.5, k_BSNH, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(jnp.where(valid_BS[:, None, None, :], scores, MASKED), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", weights.astype(v_BSNH.dtype), v_BSNH)
