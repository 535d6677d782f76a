"""Rotary positions: 2-D for the vision encoder, multimodal (time, height, width) for the decoder.

Angles stay in float32 whatever the compute type is.
"""

from __future__ import annotations

import jax.numpy as jnp

VISION_ROPE_THETA = 10_000.0  # of every published size; configs of transformers 4.x don't name it


def _rotate(x, cos, sin):
    """Rotates halves (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) in float32; cos and sin span half the last dim."""
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def apply_rope(x, angles):
    """Rotates heads by position.

    Args:
        x: [..., T, heads, H].
        angles: float32 [..., T, H // 2].
    """
    return _rotate(x, jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :])


def vision_angles(positions_P2, head_dim: int):
    """Angles of the vision encoder's axial rotary embedding.

    Args:
        positions_P2: integers [..., P, 2], row and column of each patch in its image.
        head_dim: width of one head; a quarter of it rotates with the row, a quarter with the column.

    Returns:
        float32 [..., P, head_dim // 2].
    """
    spatial = head_dim // 2
    frequencies = VISION_ROPE_THETA ** (-jnp.arange(0, spatial, 2, dtype=jnp.float32) / spatial)
    angles = positions_P2.astype(jnp.float32)[..., None] * frequencies
    return angles.reshape(*angles.shape[:-2], spatial)


def text_angles(positions_3BT, head_dim: int, theta: float, mrope_section: tuple[int, int, int]):
    """Angles of the decoder's multimodal rotary embedding: each band of frequencies follows one axis.

    Args:
        positions_3BT: integers [3, B, T]: time, height, width.
        mrope_section: how many of the head_dim // 2 frequencies follow each axis.

    Returns:
        float32 [B, T, head_dim // 2].
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    axis_of_frequency = jnp.repeat(jnp.arange(3), jnp.array(mrope_section), total_repeat_length=head_dim // 2)
    return jnp.moveaxis(positions_3BT, 0, -1).astype(jnp.float32)[..., axis_of_frequency] * frequencies


def mrope_positions(is_image_BT, valid_BT, grids_BI2, start_B=None, kept_BM=None):
    """Multimodal positions of a segment of a row, contiguous over its valid tokens.

    Text tokens advance by one. An image of h x w merged tokens spans rows and columns from the current position and
    advances it by max(h, w), as HF's `get_rope_index` does.

    Args:
        is_image_BT: bool, image placeholders.
        valid_BT: bool, tokens that exist; the others get position 0 and advance nothing.
        grids_BI2: merged (h, w) of each row's images in order, (0, 0) where there are fewer.
        start_B: position of the segment's first token; 0 where the segment opens the row.
        kept_BM: of one picture without some of its tokens: the number of each placeholder's in the raster of its whole grid,
            whose positions they keep. None: pictures are whole.

    Returns:
        positions [3, B, T] int32, and next_B [B] int32, the position after the segment.
    """
    batch = is_image_BT.shape[0]
    if start_B is None:
        start_B = jnp.zeros((batch,), jnp.int32)
    is_image_BT = is_image_BT & valid_BT
    grids_BI2 = grids_BI2.astype(jnp.int32)
    image_rank_BT = jnp.cumsum(is_image_BT, axis=1)  # placeholders up to and including this token
    counts_BI = grids_BI2[..., 0] * grids_BI2[..., 1] if kept_BM is None else image_rank_BT[:, -1:]
    ends_BI = jnp.cumsum(counts_BI, axis=1)
    text_BT = (valid_BT & ~is_image_BT).astype(jnp.int32)
    text_before_BT = jnp.cumsum(text_BT, axis=1) - text_BT
    placeholders_before_BT = image_rank_BT - is_image_BT.astype(jnp.int32)

    # images that ended before each token have advanced the position by their longer side
    ended_BTI = (placeholders_before_BT[..., None] >= ends_BI[:, None, :]) & (ends_BI[:, None, :] > 0)
    advance_BI = grids_BI2.max(axis=-1)
    base_BT = start_B[:, None] + text_before_BT + (ended_BTI.astype(jnp.int32) * advance_BI[:, None, :]).sum(-1)

    image_BT = ended_BTI.sum(-1).clip(0, grids_BI2.shape[1] - 1)
    width_BT = jnp.take_along_axis(grids_BI2[..., 1], image_BT, axis=1)
    offset_BT = placeholders_before_BT - jnp.take_along_axis(ends_BI - counts_BI, image_BT, axis=1)
    if kept_BM is not None:
        offset_BT = jnp.take_along_axis(kept_BM, offset_BT.clip(0, kept_BM.shape[1] - 1), axis=1)
    row_BT, column_BT = jnp.divmod(offset_BT, jnp.maximum(width_BT, 1))
    zero_BT = jnp.zeros_like(base_BT)
    offsets_3BT = jnp.stack([zero_BT, jnp.where(is_image_BT, row_BT, 0), jnp.where(is_image_BT, column_BT, 0)])
    positions_3BT = jnp.where(valid_BT, base_BT + offsets_3BT, 0).astype(jnp.int32)

    total_BI = (image_rank_BT[:, -1:] >= ends_BI) & (ends_BI > 0)
    next_B = start_B + text_BT.sum(1) + (total_BI.astype(jnp.int32) * advance_BI).sum(-1)
    return positions_3BT, next_B.astype(jnp.int32)
