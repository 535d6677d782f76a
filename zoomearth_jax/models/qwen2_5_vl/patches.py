"""Where the patches of pictures lie; NumPy on the host."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zoomearth_jax.models.layers import Array

if TYPE_CHECKING:
    from zoomearth_jax.models.qwen2_5_vl.config import VisionConfig


class VisionLayout(NamedTuple):
    """Where each patch of each image sits. Built on the host from grids, passed to compiled code as data.

    positions_IP2: row and column of the p-th patch in window order. valid_IP: which of the budget exist.
    source_IP: the p-th patch's index in HF's merge-block order.
    window_IWP: indices into P of each window's patches; window_valid_IWP: which exist.
    slot_IP: index of the p-th patch in the flattened [W x P] windows.
    merged_IM: for each merged token in raster order, its index in window order.
    """

    positions_IP2: Array
    valid_IP: Array
    source_IP: Array
    window_IWP: Array
    window_valid_IWP: Array
    slot_IP: Array
    merged_IM: Array


def num_windows(side_px: int, config: VisionConfig) -> int:
    """Windows that cover a square of the given side."""
    return (-(-side_px // config.window_px)) ** 2


@functools.lru_cache(maxsize=4096)
def _grid_layout(grid_h: int, grid_w: int, budget: int, windows: int, config: VisionConfig) -> VisionLayout:
    merge, side = config.merge_size, config.window_merged
    merged_h, merged_w = grid_h // merge, grid_w // merge
    raster = np.arange(merged_h * merged_w).reshape(merged_h, merged_w)
    tiles = [
        raster[r : r + side, c : c + side].ravel() for r in range(0, merged_h, side) for c in range(0, merged_w, side)
    ]
    order = np.concatenate(tiles)
    area = merge * merge
    source = (order[:, None] * area + np.arange(area)).ravel()
    block_row, block_col = np.divmod(np.arange(area), merge)
    row = (order // merged_w)[:, None] * merge + block_row
    col = (order % merged_w)[:, None] * merge + block_col
    count, capacity = grid_h * grid_w, side * side * area
    lengths = np.array([tile.size * area for tile in tiles])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    inside = np.arange(capacity)[None] < lengths[:, None]
    window = np.zeros((windows, capacity), np.int32)
    window_valid = np.zeros((windows, capacity), bool)
    window[: len(tiles)] = np.where(inside, starts[:, None] + np.arange(capacity), 0)
    window_valid[: len(tiles)] = inside

    def pad(x, size):
        return np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)])

    return VisionLayout(
        positions_IP2=pad(np.stack([row.ravel(), col.ravel()], -1).astype(np.int32), budget),
        valid_IP=np.arange(budget) < count,
        source_IP=pad(source.astype(np.int32), budget),
        window_IWP=window,
        window_valid_IWP=window_valid,
        slot_IP=pad(np.flatnonzero(inside.ravel()).astype(np.int32), budget),
        merged_IM=pad(np.argsort(order).astype(np.int32), budget // area),
    )


def vision_layout(
    grids_I2, config: VisionConfig, budget: int | None = None, windows: int | None = None
) -> VisionLayout:
    """Layout of a batch of images.

    Args:
        grids_I2: patches (h, w) of each image, both multiples of the merge size; (0, 0) for an absent image.
        budget: patches per image to pad to, at least the largest h x w (the default).
        windows: windows per image to pad to.

    Raises:
        ValueError: a grid that is not a multiple of the merge size or exceeds the budget.
    """
    grids = [(int(h), int(w)) for h, w in np.asarray(grids_I2)]
    for h, w in grids:
        if h % config.merge_size or w % config.merge_size:
            raise ValueError(f"grid {h} x {w} is not a multiple of the merge size {config.merge_size}")
    side = config.window_merged * config.merge_size
    budget = budget or max(h * w for h, w in grids)
    windows = windows or max(-(-h // side) * -(-w // side) for h, w in grids)
    if any(h * w > budget for h, w in grids):
        raise ValueError(f"a grid among {grids} exceeds the budget of {budget} patches")
    absent = VisionLayout(
        *(np.zeros_like(x) for x in _grid_layout(config.merge_size, config.merge_size, budget, windows, config))
    )
    rows = [_grid_layout(h, w, budget, windows, config) if h * w else absent for h, w in grids]
    return VisionLayout(*(np.stack(column) for column in zip(*rows, strict=True)))
