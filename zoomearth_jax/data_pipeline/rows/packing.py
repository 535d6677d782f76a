"""Packed rows: several samples behind each other, without the gaps of the fixed layout; only NumPy is used.

Only what later tokens see stands in a packed row: prompt with overview, turns, pictures. Stop tokens are targets of the
token before them. A batch is packed by itself, so its step is as random-access, and its loss the same, as with fixed rows.
Each device's samples are packed by themselves: so no row needs another device's visual tokens, and no process another's samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zoomearth_jax.data_pipeline.rows.builder import Prompts, Replies, Views
from zoomearth_jax.errors import UserError

SHAPES = 8  # a device has one of so many numbers of rows, and of targets per row: each is compiled once


class PackedRows(NamedTuple):
    """Packed rows of a batch: B rows of S slots, which hold A samples of K turns. They are N equal stretches, one behind the
    other, each with its own samples and views.

    Attributes:
        ids: int32 [B, S].
        samples: int32 [B, S], which of the row's samples a token belongs to, from 1; 0 is padding. Attention stays within them.
        places: int32 [B, T], tokens that predict a target.
        targets, target: the ids written next, int32 [B, T], and where there is one, bool.
        features: int32 [N, B / N, S], for each placeholder of a row in order the number of its visual token among those of its
            stretch's views.
        grids: merged grids of each row's views in order, int32 [B, A x K, 2]; 0 x 0 where there are fewer.
        views: of each stretch the overviews, then the K - 1 pictures of each sample, [A x K] in all; 0 x 0 where there is none.
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
            raise UserError(f"a sample of the batch has {length} tokens, a packed row {capacity}; raise pack_len")
        row = next((r for r, left in enumerate(room) if length <= left), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(sample)
        room[row] -= length
    return rows


def pack(prompts: Prompts, replies: Replies, view_tokens: int, pack_len: int, shards: int = 1) -> PackedRows:
    """Packs a batch of fixed rows.

    Args:
        view_tokens: visual tokens that the model gives for each view, `RowLayout.view_tokens`.
        pack_len: tokens of a packed row.
        shards: equal stretches of the samples, one a device; each gets as many rows as the fullest needs.

    Raises:
        UserError: a sample longer than a packed row, or later pictures of another size than overviews.
        ValueError: a token that would have to predict two.
    """
    if prompts.views.pixels.shape[1:] != replies.pictures.pixels.shape[1:]:
        raise UserError("packed rows need crops as large as overviews; leave --layout.picture-px or --pack-len out")
    ids, valid, target = (np.concatenate(pair, axis=1) for pair in _whole_rows(prompts, replies))
    views = Views(*(_by_stretch(pair, shards) for pair in zip(prompts.views, replies.pictures, strict=True)))
    turns, share, lengths = len(views.grids) // len(ids), len(ids) // shards, valid.sum(1).tolist()
    plans = [first_fit(lengths[first : first + share], pack_len) for first in range(0, len(ids), share)]
    rows = _round_up(max(map(len, plans)), max(1, share // SHAPES))
    fill = target.sum(1).reshape(shards, share)
    most = max(int(fill[shard, samples].sum()) for shard, plan in enumerate(plans) for samples in plan)
    width = min(pack_len, _round_up(most, max(1, pack_len // SHAPES)))
    packed = _empty(shards, rows, pack_len, width, share * turns, views)
    for shard, plan in enumerate(plans):
        for row, samples in enumerate(plan, shard * rows):
            begin = done = seen = 0
            for number, own in enumerate(samples):
                i = shard * share + own
                end, targets = begin + int(valid[i].sum()), done + int(target[i].sum())
                packed.ids[row, begin:end] = ids[i, valid[i]]
                packed.samples[row, begin:end] = number + 1
                packed.places[row, done:targets] = begin + _predicting(valid[i], target[i], i)
                packed.targets[row, done:targets] = ids[i, target[i]]
                packed.target[row, done:targets] = True
                pictures = range(share + own * (turns - 1), share + (own + 1) * (turns - 1))
                for image, view in enumerate([own, *pictures], number * turns):
                    grid = packed.grids[row, image] = views.grids[shard * share * turns + view]
                    tokens = int(grid.prod())
                    features = view * view_tokens + np.arange(tokens)
                    packed.features[shard, row - shard * rows, seen : seen + tokens] = features
                    seen += tokens
                begin, done = end, targets
    return packed


def padded(packed, rows: int, targets: int):
    """Packed rows with room for more.

    Args:
        packed: `PackedRows`, or a tuple of NumPy arrays by the same names, of which the views are left alone.
        rows: rows of each stretch. targets: targets of each row.
    """
    stretches, count, slots = packed.features.shape

    def grown(x, width: int):
        x = x.reshape(stretches, count, *x.shape[1:])
        x = np.pad(x, [(0, 0), (0, rows - count), (0, width - x.shape[2]), *[(0, 0)] * (x.ndim - 3)])
        return x.reshape(stretches * rows, *x.shape[2:])

    arrays = {name: grown(getattr(packed, name), slots) for name in ("ids", "samples")}
    arrays |= {name: grown(getattr(packed, name), targets) for name in ("places", "targets", "target")}
    features = np.pad(packed.features, [(0, 0), (0, rows - count), (0, 0)])
    return packed._replace(**arrays, grids=grown(packed.grids, packed.grids.shape[1]), features=features)


def _by_stretch(pair: tuple[np.ndarray, np.ndarray], shards: int) -> np.ndarray:
    """The overviews of each stretch, and then its pictures."""
    cut = [x.reshape(shards, -1, *x.shape[1:]) for x in pair]
    return np.concatenate(cut, axis=1).reshape(-1, *pair[0].shape[1:])


def _empty(shards: int, rows: int, slots: int, targets: int, images: int, views: Views) -> PackedRows:
    def zeros(*shape: int, kind=np.int32):
        return np.zeros((shards * rows, *shape), kind)

    return PackedRows(
        ids=zeros(slots),
        samples=zeros(slots),
        places=zeros(targets),
        targets=zeros(targets),
        target=zeros(targets, kind=bool),
        features=zeros(slots).reshape(shards, rows, slots),
        grids=zeros(images, 2),
        views=views,
    )


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
