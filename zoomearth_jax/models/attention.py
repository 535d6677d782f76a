"""Attention over a row's own tokens and, when decoding, over a read-only cache of earlier slots and of a shared prompt.

One entry for the decoder, one for the vision encoder. Both choose a backend (`choose_backend`): plain XLA here, cuDNN or
splash attention in `fused_attention`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoomearth_jax.errors import UserError
from zoomearth_jax.models.fused_attention import compile_platform, fused_attention
from zoomearth_jax.models.layers import Places, move_rows

MASKED = -1e30  # finite, so that a row of masked scores stays free of NaN
QUERY_BLOCK = 512  # scores above the diagonal, in whole blocks, are not computed
WHOLE_QUERIES = 2048  # patches of 630 px: above them scores of all patches with all don't fit
MIN_FUSED_LENGTH = 128  # a kernel's tile: windows of 64 patches, padded to it, would cost four times as much


class Prefix(NamedTuple):
    """Keys and values of A prompts, each of which the G rows of its group share and see whole.

    k, v: [..., A, K, U, H] (a leading L while stacked over layers); valid_AU: bool.
    places: given where rows were left out: of each shard of rows, which of its prompts' A x G places the rows that are there
        have, and the way back. Without it row a G + g is row g of group a. Groups lie on one device.
    """

    k: jax.Array
    v: jax.Array
    valid_AU: jax.Array
    places: Places | None = None


class KVCache(NamedTuple):
    """Keys and values of the slots before a segment.

    k, v: each row's own, [..., B, K, S, H] (a leading L while stacked over layers); samples_BS: int32, as in
    `decoder_attention`. prefix: what is before them, of rows that hold one sample each and share it in groups.
    """

    k: jax.Array
    v: jax.Array
    samples_BS: jax.Array
    prefix: Prefix | None = None

    def arrays(self):
        """Keys and values, to scan over their layers."""
        return self.k, self.v, None if self.prefix is None else (self.prefix.k, self.prefix.v)

    def with_arrays(self, arrays) -> KVCache:
        """The cache with other keys and values, such as those of one layer."""
        k, v, shared = arrays
        prefix = None if self.prefix is None else self.prefix._replace(k=shared[0], v=shared[1])
        return self._replace(k=k, v=v, prefix=prefix)


def one_sample(valid):
    """Sample numbers, int32, of rows that hold one sample each: 1 where a token exists (bool `valid`), 0 elsewhere."""
    return valid.astype(jnp.int32)


def decoder_attention(q_BTNH, k_BKTH, v_BKTH, samples_BT, past: KVCache | None = None, backend: str = "auto"):
    """Causal grouped-query attention within a segment and over its past: each query sees the keys of its own sample.

    Args:
        q_BTNH, k_BKTH, v_BKTH: rotated queries and keys, and values, of the segment.
        samples_BT: int32, the number of the row's sample that each token belongs to, from 1; 0 is padding. Only packed rows
            hold several samples (see `one_sample`).
        past: one layer's cache of the slots before the segment.
        backend: see `choose_backend`.

    Returns:
        [B, T, N, H] in the type of q; at padding undefined but finite. The softmax is in float32.

    Raises:
        UserError: the backend can't serve.
    """
    backend = choose_backend(backend, compile_platform(), q_BTNH)
    if backend == "xla":
        if past is None:
            return _xla_causal_attention(q_BTNH, k_BKTH, v_BKTH, samples_BT)
        return _xla_cached_attention(q_BTNH, k_BKTH, v_BKTH, samples_BT, past)
    samples_BS = samples_BT
    if past is not None:  # a copy, which a long segment repays
        past = _spelled_out(past)
        k_BKTH, v_BKTH = (jnp.concatenate(pair, axis=2) for pair in ((past.k, k_BKTH), (past.v, v_BKTH)))
        samples_BS = jnp.concatenate([past.samples_BS, samples_BT], axis=1)
    k_BSKH, v_BSKH = k_BKTH.swapaxes(1, 2), v_BKTH.swapaxes(1, 2)
    return fused_attention(q_BTNH, k_BSKH, v_BSKH, samples_BT, samples_BS, causal=True, backend=backend)


def masked_attention(q_BTNH, k_BSNH, v_BSNH, valid_BS, backend: str = "auto"):
    """Bidirectional attention over the valid keys of each row, the vision encoder's; otherwise as `decoder_attention`."""
    backend = choose_backend(backend, compile_platform(), q_BTNH)
    if backend == "xla":
        return _xla_masked_attention(q_BTNH, k_BSNH, v_BSNH, valid_BS)
    samples_BT = jnp.ones(q_BTNH.shape[:2], jnp.int32)
    return fused_attention(q_BTNH, k_BSNH, v_BSNH, samples_BT, one_sample(valid_BS), causal=False, backend=backend)


def received_attention(q_BTNH, k_BSNH, valid_BS):
    """The attention that each token receives, float32 [B, S]: mean over heads, summed over the valid queries (T = S).

    No kernel gives it, so scores are computed here, in blocks of queries.
    """

    def one(block):
        queries_BQNH, valid_BQ = block
        weights_BNQS = _masked_weights(queries_BQNH, k_BSNH, valid_BS)
        return jnp.where(valid_BQ[:, None, :, None], weights_BNQS, 0.0).sum(
            (1, 2)
        )  # a product takes seven times as long on CPUs

    received_BS = jax.lax.map(one, (_query_blocks(q_BTNH), _query_blocks(valid_BS))).sum(0)
    return received_BS / jnp.float32(q_BTNH.shape[2])


def choose_backend(backend: str, platform: str, q_BTNH) -> str:
    """The backend that computes an attention: xla, cudnn or splash.

    Few queries (decoding, windows) always take XLA, which reads the past in place.

    Args:
        backend: as in `ComputeConfig`; auto is splash on TPUs, cuDNN on GPUs where it can serve, XLA elsewhere. Off a TPU
            splash is interpreted, for tests.
        platform: cpu, gpu or tpu.
        q_BTNH: the queries; their shape and type decide.

    Raises:
        UserError: cudnn off a GPU, or for a number type or head width that it doesn't have.
    """
    fits_cudnn = q_BTNH.dtype in (jnp.bfloat16, jnp.float16) and q_BTNH.shape[-1] % 8 == 0 and q_BTNH.shape[-1] <= 128
    if backend == "auto":
        backend = {"tpu": "splash", "gpu": "cudnn" if fits_cudnn else "xla"}.get(platform, "xla")
    if backend == "cudnn" and platform != "gpu":
        raise UserError(f"attention backend cudnn needs a GPU, not {platform}; use auto")
    if backend == "cudnn" and not fits_cudnn:
        raise UserError(
            "attention backend cudnn needs bfloat16 or float16 and a head width in multiples of 8 up to 128, "
            f"got {q_BTNH.dtype} and {q_BTNH.shape[-1]}; use auto"
        )
    return backend if q_BTNH.shape[1] >= MIN_FUSED_LENGTH else "xla"


def _split_heads(q_BTNH, num_kv_heads: int):
    """Scaled queries [B, K, Q, H]: the heads that share a key-value head make one matrix product with its keys."""
    batch, length, _, head_dim = q_BTNH.shape
    q = q_BTNH.reshape(batch, length, num_kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4) * head_dim**-0.5
    return q.reshape(batch, num_kv_heads, -1, head_dim)


def _join_heads(out_BKQH, shape):
    """Back from [B, K, Q, H] to the queries' shape [B, T, N, H]."""
    batch, length, _, head_dim = shape
    out = out_BKQH.reshape(batch, out_BKQH.shape[1], -1, length, head_dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(shape)


def _scores(q_BKQH, k_BKSH, visible):
    """Scores, float32 [B, K, Q, S]; visible broadcasts against [B, 1, T, S]."""
    out = jnp.einsum("BKQH,BKSH->BKQS", q_BKQH, k_BKSH, preferred_element_type=jnp.float32)
    return jnp.where(jnp.tile(visible, (1, 1, q_BKQH.shape[2] // visible.shape[2], 1)), out, MASKED)


class _Part(NamedTuple):
    """Attention over some of the keys, float32: the largest score and the sum of the exponentials under it, [B, K, Q, 1], and
    the values weighted by these, [B, K, Q, H]."""

    peak: jax.Array
    total: jax.Array
    out: jax.Array


def _attend(q_BKQH, k_BKSH, v_BKSH, visible) -> _Part:
    """A part of attention; visible as in `_scores`."""
    scores = _scores(q_BKQH, k_BKSH, visible)
    peak = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True, initial=MASKED))
    weights = jnp.exp(scores - peak)
    out = jnp.einsum("BKQS,BKSH->BKQH", weights.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=jnp.float32)
    return _Part(peak, weights.sum(axis=-1, keepdims=True), out)


def _join_parts(parts: list[_Part]):
    """The softmax over the keys of all parts, times their values: float32 [B, K, Q, H]."""
    peak = functools.reduce(jnp.maximum, [part.peak for part in parts])
    scales = [jnp.exp(part.peak - peak) for part in parts]
    out = sum(scale * part.out for scale, part in zip(scales, parts, strict=True))
    return out / sum(scale * part.total for scale, part in zip(scales, parts, strict=True))


def _xla_cached_attention(q_BTNH, k_BKTH, v_BKTH, samples_BT, past: KVCache):
    """Attention with a past, which is read, never copied: its part is computed apart, as is that of a prefix, once a group."""
    q = _split_heads(q_BTNH, k_BKTH.shape[1])
    causal_TT = jnp.tri(q_BTNH.shape[1], dtype=bool)
    own_BTT = causal_TT & (samples_BT[:, :, None] == samples_BT[:, None])
    before_BTS = samples_BT[:, :, None] == past.samples_BS[:, None]
    parts = [_attend(q, k_BKTH, v_BKTH, own_BTT[:, None]), _attend(q, past.k, past.v, before_BTS[:, None])]
    if past.prefix is not None:
        parts.append(_attend_prefix(q, past.prefix))
    return _join_heads(_join_parts(parts).astype(v_BKTH.dtype), q_BTNH.shape)


def _attend_prefix(q_BKQH, prefix: Prefix) -> _Part:
    """The part of the prompts: the queries of a group's rows make one product with its keys."""
    prompts, places = len(prefix.k), prefix.places

    def grouped(x_BKQH):
        if places is not None:
            x_BKQH = _by_shard(x_BKQH, places.place_AS, places.kept_AR)
        x_AGKQH = x_BKQH.reshape(prompts, -1, *x_BKQH.shape[1:])
        return x_AGKQH.swapaxes(1, 2).reshape(prompts, x_BKQH.shape[1], -1, x_BKQH.shape[3])

    def by_row(x_AKQH):
        x_AKGQH = x_AKQH.reshape(*x_AKQH.shape[:2], -1, q_BKQH.shape[2], x_AKQH.shape[3])
        x_BKQH = x_AKGQH.swapaxes(1, 2).reshape(-1, x_AKGQH.shape[1], *x_AKGQH.shape[3:])
        return x_BKQH if places is None else _by_shard(x_BKQH, places.kept_AR, places.place_AS)

    return _Part(*map(by_row, _attend(grouped(q_BKQH), prefix.k, prefix.v, prefix.valid_AU[:, None, None])))


def _by_shard(x_B, index, inverse):
    """Moves rows within their shards (see `move_rows`); index and inverse: [shards, rows of one shard]."""
    moved = move_rows(x_B.reshape(len(index), -1, *x_B.shape[1:]), index, inverse)
    return moved.reshape(-1, *x_B.shape[1:])


def _spelled_out(past: KVCache) -> KVCache:
    """The same past of all rows of the groups, in which each row has a copy of what it shares."""
    if past.prefix is None:
        return past
    prefix, group = past.prefix, len(past.k) // len(past.prefix.k)

    def joined(shared, own, axis: int):
        return jnp.concatenate([jnp.repeat(shared, group, axis=0), own], axis)

    samples_BS = joined(one_sample(prefix.valid_AU), past.samples_BS, 1)
    return KVCache(joined(prefix.k, past.k, 2), joined(prefix.v, past.v, 2), samples_BS)


def _xla_causal_attention(q_BTNH, k_BKTH, v_BKTH, samples_BT):
    """Attention without a past, in blocks of queries."""
    blocks = []
    for begin in range(0, q_BTNH.shape[1], QUERY_BLOCK):
        block_BTNH = q_BTNH[:, begin : begin + QUERY_BLOCK]
        end = begin + block_BTNH.shape[1]
        causal_TS = jnp.tri(end - begin, end, begin, dtype=bool)
        seen_BTS = causal_TS & (samples_BT[:, begin:end, None] == samples_BT[:, None, :end])
        scores = _scores(_split_heads(block_BTNH, k_BKTH.shape[1]), k_BKTH[:, :, :end], seen_BTS[:, None])
        weights = jax.nn.softmax(scores, axis=-1).astype(v_BKTH.dtype)
        out = jnp.einsum("BKQS,BKSH->BKQH", weights, v_BKTH[:, :, :end])
        blocks.append(_join_heads(out, block_BTNH.shape))
    return jnp.concatenate(blocks, axis=1)


def _xla_masked_attention(q_BTNH, k_BSNH, v_BSNH, valid_BS):
    """Attention over all valid keys; of a large picture in blocks of queries, since scores grow with its fourth power."""

    def attend(q_BQNH):
        weights = _masked_weights(q_BQNH, k_BSNH, valid_BS).astype(v_BSNH.dtype)
        return jnp.einsum("BNQS,BSNH->BQNH", weights, v_BSNH)

    batch, length, heads, width = q_BTNH.shape
    if length <= WHOLE_QUERIES:
        return attend(q_BTNH)
    out = jax.lax.map(jax.checkpoint(attend), _query_blocks(q_BTNH)).swapaxes(0, 1)
    return out.reshape(batch, -1, heads, width)[:, :length]


def _query_blocks(x_BT):
    """Blocks [blocks, B, Q, ...] of at most QUERY_BLOCK queries, the last one padded with zeros."""
    batch, length, *rest = x_BT.shape
    size = min(QUERY_BLOCK, length)
    padded = jnp.pad(x_BT, ((0, 0), (0, -length % size), *[(0, 0)] * len(rest)))
    return padded.reshape(batch, -1, size, *rest).swapaxes(0, 1)


def _masked_weights(q_BTNH, k_BSNH, valid_BS):
    """Softmax over valid keys, float32 [B, N, T, S]."""
    scores = jnp.einsum(
        "BTNH,BSNH->BNTS", q_BTNH * q_BTNH.shape[-1] ** -0.5, k_BSNH, preferred_element_type=jnp.float32
    )
    return jax.nn.softmax(jnp.where(valid_BS[:, None, None, :], scores, MASKED), axis=-1)
