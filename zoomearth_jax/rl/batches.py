"""Batches of rows on the devices, fixed and packed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from zoomearth_jax.data_pipeline.rows.builder import Prompts, Replies
from zoomearth_jax.data_pipeline.rows.packing import PackedRows, padded
from zoomearth_jax.models.family import Images, Sizes
from zoomearth_jax.models.layers import Array, Places
from zoomearth_jax.models.sharding import constrain
from zoomearth_jax.rl.policy import group_places


class RowBatch(NamedTuple):
    """Rows on the device: A prompts, A x G replies with K - 1 pictures each. Images come as pixels, or as visual tokens that are
    final; those of a reply one after the other, [A x G x (K - 1), ...]. Without pictures (K = 1) both fields are None.

    places: the slots that exist, to compute no others (see `group_places`).
    """

    prompt_ids: Array
    prompt_valid: Array
    overviews: Images | jax.Array
    overview_grids: Array
    reply_ids: Array
    reply_valid: Array
    target: Array
    pictures: Images | jax.Array | None
    picture_grids: Array | None
    places: Places | None = None


class PackedBatch(NamedTuple):
    """Packed rows on the device: as `PackedRows`, the views ready to encode or as visual tokens that are final."""

    ids: Array
    samples: Array
    places: Array
    targets: Array
    target: Array
    features: Array
    grids: Array
    views: Images | jax.Array


class GRPOBatch(NamedTuple):
    """Rows with the log-probabilities they were sampled at [A x G, written slots] and their advantages [A x G].

    Attributes:
        kept: bool [A x G], rows that count in the loss; None for all.
        old_logp: log-probabilities of the policy before the rollout's first update, by `make_scorer`; read
            where the objective's old policy is the trainer's. None where the policy is still that one.
        teacher_logp, distilled: log-probabilities of self-distillation's teacher [A x G, written slots], and which of them count,
            bool; None without distillation.
    """

    rows: RowBatch
    sampler_logp: Array
    advantages: Array
    kept: Array | None = None
    old_logp: Array | None = None
    teacher_logp: Array | None = None
    distilled: Array | None = None


def row_batch(
    prompts: Prompts, replies: Replies, config: Sizes, overviews=None, pictures=None, parts: int = 0
) -> RowBatch:
    """Rows from NumPy arrays; `overviews` and `pictures` are visual tokens to use instead of the pixels, `parts` as of
    `group_places` (0: every slot is computed)."""
    grids, shown = replies.grids, replies.grids.shape[1] > 0
    if shown and pictures is None:
        pictures = config.prepare(*replies.pictures)
    return RowBatch(
        prompts.ids,
        prompts.valid,
        config.prepare(*prompts.views) if overviews is None else overviews,
        prompts.views.grids[:, None],
        replies.ids,
        replies.valid,
        replies.target,
        pictures if shown else None,
        grids if shown else None,
        group_places(prompts.valid, replies.valid, parts) if parts else None,
    )


def packed_batch(rows: PackedRows, config: Sizes) -> PackedBatch:
    """Packed rows from NumPy arrays."""
    return PackedBatch(*rows[:-1], config.prepare(*rows.views))


def as_the_fullest(batch: PackedBatch) -> PackedBatch:
    """A batch, NumPy arrays beside its views, with as many rows and targets as the process needs that needs most.

    All processes must call it at the same time, in the thread that runs their programs.
    """
    if jax.process_count() == 1:
        return batch
    own = np.array([batch.features.shape[1], batch.target.shape[1]])
    return padded(batch, *multihost_utils.process_allgather(own).max(axis=0).tolist())


def split_batch(batch, rows: int, parts: int):
    """A batch in `parts` smaller ones [parts, ...]; a prompt's replies stay with it, every row on its device.

    Args:
        rows: the batch's first dimension; arrays of a multiple of it have a group's replies one after the other.
    """
    if parts == 1:
        return jax.tree.map(lambda x: x[None], batch)

    def one(x):
        split = x.reshape(rows // parts, parts, x.shape[0] // rows, *x.shape[1:]).swapaxes(0, 1)
        return constrain(split.reshape(parts, -1, *x.shape[1:]), None, "batch", *[None] * (x.ndim - 1))

    return jax.tree.map(one, batch)
