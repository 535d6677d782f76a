"""Packed rows: several samples behind each other, without the gaps of the fixed layout; only NumPy is used.

Only what later tokens see stands in a packed row: prompt with overview, turns, pictures. Stop tokens are targets of the
token before them. A batch is packed by itself, so its step is as random-access, and its loss the same, as with fixed rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zoomearth_jax.data_pipeline.rows.builder import Prompts, Replies, Views
from zoomearth_jax.errors import UserError

SHAPES = 8  # a batch has one of so many numbers of rows, and of targets per row: each is compiled once


class PackedRows(NamedTuple):
    """Packed rows of a batch: B rows of S slots, which hold A samples of K turns.

    Attributes:
        ids: int32 [B, S].
        samples: int32 [B, S], which of the row's samples a token belongs to, from 1; 0 is padding. Attention stays within them.
        places: int32 [B, T], tokens that predict a target.
        targets, target: the ids written next, int32 [B, T], and where there is one, bool.
        features: int32 [B, S], for each placeholder of a row in order the number of its visual token among those of all views.
        grids: merged grids of each row's views in order, int32 [B, A x K, 2]; 0 x 0 where there are fewer.
        views: overviews, then the K - 1 pictures of each sample, [A x K]; 0 x 0 where there is none.
    """

    ids: np.ndarray
    samples: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    target: np.ndarray
    features: np.ndarray
    grids: np.ndarray
    views: Views


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Longest first, each sample into the first row that has room: the samples of each row.

    Raises:
        UserError: a sample that no row holds.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[sample]
        if length > capacity:
            raise UserError(
                f"sample {sample} of the batch has {length} tokens, a packed row {capacity}; raise pack_len"
            )
        row = next((r for r, left in enumerate(room) if length <= left), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(sample)
        room[row] -= length
    return rows


def pack(prompts: Prompts, replies: Replies, view_tokens: int, pack_len: int, rows_multiple: int = 1) -> PackedRows:
    """Packs a batch of fixed rows.

    Args:
        view_tokens: visual tokens that the model gives for each view, `RowLayout.view_tokens`.
        pack_len: tokens of a packed row.
        rows_multiple: over how many devices rows must divide.

    Raises:
        UserError: a sample longer than a packed row, or later pictures of another size than overviews.
        ValueError: a token that would have to predict two.
    """
    if prompts.views.pixels.shape[1:] != replies.pictures.pixels.shape[1:]:
        raise UserError("packed rows need crops as large as overviews; leave --layout.picture-px or --pack-len out")
    ids, valid, target = (np.concatenate(pair, axis=1) for pair in _whole_rows(prompts, replies))
    views = Views(*(np.concatenate(pair) for pair in zip(prompts.views, replies.pictures, strict=True)))
    turns = len(views.grids) // len(ids)
    plan = first_fit(valid.sum(1).tolist(), pack_len)
    step = _round_up(max(1, len(ids) // SHAPES), rows_multiple)
    rows, slots = _round_up(len(plan), step), max(1, pack_len // SHAPES)
    most = max(int(target[samples].sum()) for samples in plan)
    width = min(pack_len, _round_up(most, slots))
    shapes = ((pack_len,), (pack_len,), (width,), (width,), (width,), (pack_len,), (len(views.grids), 2))
    types = [bool if name == "target" else np.int32 for name in PackedRows._fields]
    arrays = [np.zeros((rows, *shape), kind) for shape, kind in zip(shapes, types, strict=False)]
    packed = PackedRows._make([*arrays, views])
    for row, samples in enumerate(plan):
        begin = done = seen = 0
        for number, i in enumerate(samples):
            end, targets = begin + int(valid[i].sum()), done + int(target[i].sum())
            packed.ids[row, begin:end] = ids[i, valid[i]]
            packed.samples[row, begin:end] = number + 1
            packed.places[row, done:targets] = begin + _predicting(valid[i], target[i], i)
            packed.targets[row, done:targets] = ids[i, target[i]]
            packed.target[row, done:targets] = True
            own = [i, *range(len(ids) + i * (turns - 1), len(ids) + (i + 1) * (turns - 1))]
            for image, view in enumerate(own, number * turns):
                packed.grids[row, image] = views.grids[view]
                tokens = int(views.grids[view].prod())
                packed.features[row, seen : seen + tokens] = view * view_tokens + np.arange(tokens)
                seen += tokens
            begin, done = end, targets
    return packed


def _whole_rows(prompts: Prompts, replies: Replies):
    """(prompt's, reply's) ids, valid and target."""
    nothing = np.zeros_like(prompts.valid)
    return (prompts.ids, replies.ids), (prompts.valid, replies.valid), (nothing, replies.target)


def _predicting(valid, target, sample: int) -> np.ndarray:
    """For each target of a sample, which of its valid tokens predicts it: the last one before it."""
    places = (np.cumsum(valid) - valid)[target] - 1
    if (np.diff(places) <= 0).any():
        raise ValueError(f"sample {sample}: a target right after a stop token; one token would predict both")
    return places


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
