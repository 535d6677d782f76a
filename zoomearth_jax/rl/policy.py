"""The policy's view of rows: segments with their images, and log-probabilities of what was written."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from zoomearth_jax.models.attention import KVCache, one_sample
from zoomearth_jax.models.family import VisionLanguageModel
from zoomearth_jax.models.layers import Array, Places, take_rows
from zoomearth_jax.models.sharding import cast_kernels, constrain, num_devices, on_own_rows

LOGITS_BUDGET = 5 * 2**27  # of a device at a time, 2.5 GB of float32: four rows of 896 slots of the 3B are one chunk


class Segment(NamedTuple):
    """A segment of each row: ids and valid [B, T]; visual tokens of its pictures in order of their placeholders [B, M, D], and
    their merged grids [B, I, 2] (None without pictures)."""

    ids: Array
    valid: Array
    features: Array | None = None
    grids: Array | None = None


def row_features(features_IMD, grids_BI2):
    """Visual tokens of each row in order of its placeholders, [B, M of all its pictures, D].

    Args:
        features_IMD: of the pictures of all rows, those of a row one after the other; tokens past a picture's own are anything.
        grids_BI2: their merged grids.
    """
    (rows, pictures), tokens = grids_BI2.shape[:2], features_IMD.shape[1]
    features_BMD = features_IMD.reshape(rows, pictures * tokens, -1)
    if pictures == 1:
        return features_BMD
    ends_BI = jnp.cumsum(grids_BI2.prod(-1), axis=1)
    rank_M = jnp.arange(pictures * tokens)
    picture_BM = (rank_M[:, None] >= ends_BI[:, None]).sum(-1).clip(0, pictures - 1)
    before_BM = jnp.take_along_axis(jnp.pad(ends_BI, ((0, 0), (1, 0))), picture_BM, axis=1)
    index_BM = (picture_BM * tokens + rank_M - before_BM).clip(0, pictures * tokens - 1)
    return take_rows(features_BMD, index_BM)


def repeat_rows(tree, times: int):
    """Repeats each row (first dimension) for the samples of its group."""
    return tree if times == 1 else jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tree)


def repeat_cache(cache: KVCache, times: int) -> KVCache:
    """Broadcasts a prompt's cache to the samples of its group."""
    if times == 1:
        return cache
    k, v = (jnp.repeat(x, times, axis=1) for x in (cache.k, cache.v))
    return KVCache(k, v, jnp.repeat(cache.samples_BS, times, axis=0))


def last_valid(hidden_BTD, valid_BT):
    """Hidden state [B, D] of each row's last valid token."""
    index_B1 = (valid_BT.shape[1] - 1 - jnp.argmax(valid_BT[:, ::-1], axis=1))[:, None]
    return take_rows(hidden_BTD, index_B1)[:, 0]


def masked_logits(logits, banned_ids: tuple[int, ...]):
    """Logits of the distribution that is sampled from: ids that only we place (vision, turn starts) are impossible."""
    if not banned_ids:
        return logits
    banned_V = np.zeros(logits.shape[-1], bool)
    banned_V[list(banned_ids)] = True
    return jnp.where(banned_V, -jnp.inf, logits)  # a scatter would copy the logits into another layout on TPUs


def token_logprobs(model: VisionLanguageModel, hidden_BTD, targets_BT, temperature: float, banned_ids=()):
    """Log-probabilities of targets, in chunks of slots that the backward pass recomputes.

    No [B, T, V] array over LOGITS_BUDGET exists on a device. A chunk has some slots of every row, so that each device works
    on its own rows. The head's weights are gathered once for all chunks, and their gradient is added up over the devices once.

    Args:
        hidden_BTD: the states that predict the targets.
        temperature: logits are divided by it, as in sampling.

    Returns:
        log-probabilities and entropies, float32 [B, T].
    """
    batch, length = targets_BT.shape
    tokens = LOGITS_BUDGET * num_devices() // model.config.vocab_size
    step = min(length, max(1, tokens // batch))
    step = -(-length // -(-length // step))  # equal chunks: as little padding as that number of chunks allows
    padding = -length % step
    graph, weights = nnx.split(model.head)

    def logits(weights, hidden_BTD):
        logits = model.logits(hidden_BTD, nnx.merge(graph, weights)) / temperature
        return masked_logits(constrain(logits, "batch", None, "vocab"), banned_ids)

    def chunks(x):
        x = jnp.pad(x, ((0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(x.shape[0], -1, step, *x.shape[2:]).swapaxes(0, 1)

    def own_rows(weights, hidden_BTD, targets_BT):
        results = chunk_logprobs(logits, weights, chunks(hidden_BTD), chunks(targets_BT))
        return tuple(x.swapaxes(0, 1).reshape(len(hidden_BTD), -1)[:, :length] for x in results)

    return on_own_rows(own_rows, cast_kernels(weights, model.compute.dtype), hidden_BTD, targets_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunk_logprobs(logits, weights, hidden_CBTD, targets_CBT):
    """Log-probabilities and entropies [C, B, T] of the targets, one chunk C after the other.

    The backward pass computes a chunk's logits again, unless there is only one, and adds the gradients of the weights up in
    float32. It is written out, because it needs no sum over the vocabulary that the forward pass hasn't made.

    Args:
        logits: (weights, hidden [B, T, D]) -> float32 [B, T, V].
    """
    return _chunk_forward(logits, weights, hidden_CBTD, targets_CBT)[0]


def _is_target(targets_BT, logits_BTV):
    return targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1])  # a sum over the vocabulary stays on its shards


def _chunk_forward(logits, weights, hidden_CBTD, targets_CBT):
    only = logits(weights, hidden_CBTD[0]) if len(hidden_CBTD) == 1 else None

    def one(hidden_BTD, targets_BT, logits_BTV):
        if logits_BTV is None:
            logits_BTV = logits(weights, hidden_BTD)
        largest_BT = logits_BTV.max(axis=-1)
        shifted_BTV = logits_BTV - largest_BT[..., None]
        parts_BTV = jnp.exp(shifted_BTV)
        sum_BT = parts_BTV.sum(axis=-1)
        mean_BT = jnp.where(parts_BTV > 0, parts_BTV * shifted_BTV, 0.0).sum(axis=-1) / sum_BT  # banned ids are -inf
        target_BT = jnp.where(_is_target(targets_BT, logits_BTV), shifted_BTV, 0.0).sum(axis=-1)
        return target_BT - jnp.log(sum_BT), jnp.log(sum_BT) - mean_BT, largest_BT + jnp.log(sum_BT)

    if only is None:
        logp, entropy, norm = jax.lax.map(lambda chunk: one(chunk[0], chunk[1], None), (hidden_CBTD, targets_CBT))
    else:
        logp, entropy, norm = (x[None] for x in one(hidden_CBTD[0], targets_CBT[0], only))
    return (logp, entropy), (weights, hidden_CBTD, targets_CBT, entropy, norm, only)


def _chunk_backward(logits, kept, gradients):
    weights, hidden_CBTD, targets_CBT, entropy_CBT, norm_CBT, only = kept

    def one(total, chunk):
        hidden_BTD, targets_BT, entropy_BT, norm_BT, (logp_gradient_BT, entropy_gradient_BT) = chunk
        logits_BTV, pull = jax.vjp(logits, weights, hidden_BTD)
        logp_BTV = (logits_BTV if only is None else only) - norm_BT[..., None]
        by_entropy_BTV = entropy_gradient_BT[..., None] * (logp_BTV + entropy_BT[..., None])
        by_target_BTV = jnp.where(_is_target(targets_BT, logits_BTV), logp_gradient_BT[..., None], 0.0)
        own, hidden_gradient_BTD = pull(
            by_target_BTV - jnp.exp(logp_BTV) * (logp_gradient_BT[..., None] + by_entropy_BTV)
        )
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, own), hidden_gradient_BTD

    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), weights)
    total, hidden_gradient = jax.lax.scan(one, zeros, (hidden_CBTD, targets_CBT, entropy_CBT, norm_CBT, gradients))
    return jax.tree.map(lambda a, x: a.astype(x.dtype), total, weights), hidden_gradient, None


chunk_logprobs.defvjp(_chunk_forward, _chunk_backward)


def reply_hidden(model: VisionLanguageModel, prompt: Segment, reply: Segment, places: Places | None = None):
    """For each slot of the reply, the hidden state that predicts its token.

    Prompts run once per group: with A prompts and B = A x G replies, replies i G … (i + 1) G - 1 follow prompt i.

    Args:
        places: the slots that exist (see `group_places`); without it all are computed.

    Returns:
        [B, T, D]: at a slot, the state of the nearest valid token before it (the prompt's last one at first).
    """
    asked, written = ((part.ids, one_sample(part.valid), part.features, part.grids) for part in (prompt, reply))
    hidden_AUD, hidden_BTD = model.grouped(asked, written, places)
    first_BD = repeat_rows(last_valid(hidden_AUD, prompt.valid), reply.ids.shape[0] // prompt.ids.shape[0])
    # 0 is the prompt's last token, i + 1 is slot i
    seen_BT = jax.lax.cummax(jnp.where(reply.valid, jnp.arange(1, reply.ids.shape[1] + 1), 0), axis=1)
    source_BT = jnp.pad(seen_BT[:, :-1], ((0, 0), (1, 0)))
    return take_rows(jnp.concatenate([first_BD[:, None], hidden_BTD], axis=1), source_BT)


def group_places(prompt_valid_AU, reply_valid_BT, parts: int) -> Places | None:
    """The slots of rows [prompt | its replies] that exist, NumPy arrays; None where the fullest row needs them all.

    Args:
        parts: the number of rows R is a multiple of a row's slots over this, so that few shapes exist. It is that of the
            fullest row of all processes.
    """
    valid_AS = np.concatenate([prompt_valid_AU, reply_valid_BT.reshape(len(prompt_valid_AU), -1)], axis=1)
    slots, need = valid_AS.shape[1], valid_AS.sum(axis=1).max()
    if jax.process_count() > 1:
        need = multihost_utils.process_allgather(need).max()
    unit = -(-slots // parts)
    size = int(-(-need // unit) * unit)
    if size >= slots:
        return None
    order = np.argsort(~valid_AS, axis=1, kind="stable")[:, :size]
    kept = np.where(np.take_along_axis(valid_AS, order, axis=1), order, slots)
    place = np.where(valid_AS, np.cumsum(valid_AS, axis=1) - 1, size)
    return Places(kept.astype(np.int32), place.astype(np.int32))


def reply_logprobs(
    model, prompt: Segment, reply: Segment, scored, temperature, banned_ids=(), places: Places | None = None
):
    """Log-probabilities and entropies of the reply's tokens at the slots `scored` (a static index array): [B, scored]."""
    hidden_BTD = reply_hidden(model, prompt, reply, places)
    return token_logprobs(model, hidden_BTD[:, scored], reply.ids[:, scored], temperature, banned_ids)


def packed_logprobs(model: VisionLanguageModel, batch, features_IMD):
    """Log-probabilities and entropies of the targets of packed rows, [B, T] each, at T = 1 over the full vocabulary.

    Args:
        batch: `data_pipeline.packing.PackedRows`, on the device.
        features_IMD: visual tokens of its views.
    """
    stretches, rows, slots = batch.features.shape
    own = features_IMD.reshape(stretches, -1, features_IMD.shape[-1])  # of a device's views
    features_BMD = take_rows(own, batch.features.reshape(stretches, -1)).reshape(stretches * rows, slots, -1)
    hidden_BTD, _, _ = model.segment(batch.ids, batch.samples, features_BMD, batch.grids)
    return token_logprobs(model, take_rows(hidden_BTD, batch.places), batch.targets, 1.0)
