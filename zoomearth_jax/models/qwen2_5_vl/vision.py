"""The vision encoder: windowed and full attention blocks with axial rotary positions, then the 2 x 2 patch merger.

Patches run through the blocks in window order (each window's patches contiguous, as in HF), padded at the end to a
fixed budget. Which patch sits where depends only on the image's grid and travels as data (`VisionLayout`), so one
compiled program serves every grid.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.models.attention import masked_attention, received_attention
from zoomearth_jax.models.layers import Linear, SwiGLU, gelu, rms_norm, scan_layers, stack, take_rows
from zoomearth_jax.models.qwen2_5_vl.config import ModelConfig, VisionConfig
from zoomearth_jax.models.qwen2_5_vl.patches import VisionLayout
from zoomearth_jax.models.rope import apply_rope, vision_angles

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP, as in Qwen's preprocessor_config.json
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def patchify(views, positions_IP2, config: VisionConfig):
    """Cuts uint8 views into normalised patches, on the device.

    Args:
        views: uint8 RGB [I, height, width, 3], each image in the top left corner of a canvas whose sides are multiples of
            the patch.
        positions_IP2: row and column of each wanted patch.

    Returns:
        float32 [I, P, channels x frames x patch x patch]; the frames of a still image are equal.
    """
    images, height, width, channels = views.shape
    size = config.patch_size
    columns = width // size
    patches = views.reshape(images, height // size, size, columns, size, channels)
    patches = patches.transpose(0, 1, 3, 5, 2, 4).reshape(images, -1, channels * size * size)
    patches = take_rows(patches, positions_IP2[..., 0] * columns + positions_IP2[..., 1])
    mean, std = (jnp.array(x, jnp.float32)[:, None] for x in (PIXEL_MEAN, PIXEL_STD))
    patches = patches.reshape(*patches.shape[:2], channels, size * size).astype(jnp.float32)
    patches = (patches / 255.0 - mean) / std
    patches = jnp.repeat(patches[:, :, :, None], config.temporal_patch_size, axis=3)
    return patches.reshape(images, -1, config.patch_dim)


@functools.partial(jax.jit, static_argnames="config")
def pixel_values(pixels, config: VisionConfig):
    """HF's `pixel_values` of one picture whose sides are multiples of a merged token; compiled for each size.

    Args:
        pixels: uint8 RGB [height, width, 3].

    Returns:
        float32 [patches, channels x frames x patch x patch], one merge block of patches after the other.
    """
    merge = config.merge_size
    rows, columns = (side // config.patch_size for side in pixels.shape[:2])
    positions = np.moveaxis(np.indices((rows, columns)), 0, -1)
    blocks = positions.reshape(rows // merge, merge, columns // merge, merge, 2).swapaxes(1, 2)
    return patchify(pixels[None], blocks.reshape(1, -1, 2), config)[0]


class VisionBlock(nnx.Module):
    """Pre-norm attention and SwiGLU; attends inside windows or over the whole image."""

    def __init__(self, config: VisionConfig, *, compute: ComputeConfig, rngs: nnx.Rngs):
        self.num_heads, self.attention = config.num_heads, compute.attention
        settings: dict[str, Any] = {"compute": compute, "rngs": rngs}
        self.norm1 = rms_norm(config.width, 1e-6, **settings)
        self.norm2 = rms_norm(config.width, 1e-6, **settings)
        self.qkv = Linear(config.width, 3 * config.width, ("embed", "qkv"), **settings)
        self.proj = Linear(config.width, config.width, ("heads", "embed"), **settings)
        self.mlp = SwiGLU(config.width, config.mlp_dim, use_bias=True, **settings)

    def __call__(self, x_IPD, angles_IPH, layout: VisionLayout, is_full):
        x_IPD = x_IPD + self.attend(self.norm1(x_IPD), angles_IPH, layout, is_full)
        return x_IPD + self.mlp(self.norm2(x_IPD))

    def received(self, x_IPD, angles_IPH, layout: VisionLayout):
        """The attention that each patch receives from all of its image, float32 [I, P]."""
        q, k, _ = self._projected(self.norm1(x_IPD), angles_IPH)
        return received_attention(q, k, layout.valid_IP)

    def _projected(self, x_IPD, angles_IPH):
        """Rotated queries and keys, and values, [I, P, heads, H] each."""
        qkv = self.qkv(x_IPD).reshape(*x_IPD.shape[:2], 3, self.num_heads, -1)
        q, k, v = (qkv[:, :, i] for i in range(3))
        return apply_rope(q, angles_IPH), apply_rope(k, angles_IPH), v

    def attend(self, x_IPD, angles_IPH, layout, is_full):
        """Attention of normed patches, over the whole image where is_full (may be traced), else inside windows."""
        images, patches, width = x_IPD.shape
        q, k, v = self._projected(x_IPD, angles_IPH)

        def full(q, k, v):
            return masked_attention(q, k, v, layout.valid_IP, self.attention)

        def windowed(q, k, v):
            _, windows, capacity = layout.window_IWP.shape
            index = layout.window_IWP.reshape(images, -1)
            cut = (take_rows(t, index).reshape(images * windows, capacity, *t.shape[2:]) for t in (q, k, v))
            q, k, v = cut
            out = masked_attention(q, k, v, layout.window_valid_IWP.reshape(-1, capacity), self.attention)
            return take_rows(out.reshape(images, windows * capacity, *out.shape[2:]), layout.slot_IP)

        out = jax.lax.cond(is_full, full, windowed, q, k, v)
        return self.proj(out.reshape(images, patches, width))


class VisionEncoder(nnx.Module):
    """Patches in window order -> merged visual tokens in raster order."""

    def __init__(self, model_config: ModelConfig, *, compute: ComputeConfig, rngs: nnx.Rngs):
        config = self.config = model_config.vision
        self.remat = compute.remat
        settings: dict[str, Any] = {"compute": compute, "rngs": rngs}
        self.patch_embed = Linear(config.patch_dim, config.width, (None, "embed"), use_bias=False, **settings)
        self.blocks = stack(lambda r: VisionBlock(config, compute=compute, rngs=r), config.depth, rngs)
        merged_width = config.width * config.merge_size**2
        self.merger_norm = rms_norm(config.width, 1e-6, **settings)
        self.merger_in = Linear(merged_width, merged_width, ("embed", "mlp"), **settings)
        self.merger_out = Linear(merged_width, config.out_dim, ("mlp", "embed"), **settings)

    def __call__(self, patches_IPC, layout: VisionLayout):
        """Encodes images.

        Args:
            patches_IPC: normalised patches in window order, [I, P, channels x frames x patch x patch].
            layout: layout of the same images.

        Returns:
            [I, M, D]: merged tokens in raster order, one per 2 x 2 patches; those past an image's own are undefined.
        """
        return self._encode(patches_IPC, layout, scored=False)[0]

    def scored(self, patches_IPC, layout: VisionLayout):
        """The same, and the attention that each merged token receives in the last block over the whole image: the mean over its
        patches and the heads, summed over all patches that attend; float32 [I, M]."""
        x_IMD, received_LIP = self._encode(patches_IPC, layout, scored=True)
        received_IMA = received_LIP.sum(0).reshape(*x_IMD.shape[:2], -1)
        return x_IMD, take_rows(received_IMA.mean(-1), layout.merged_IM)

    def _encode(self, patches_IPC, layout: VisionLayout, scored: bool):
        """Merged tokens, and where they are `scored` the attention [L, I, P] that patches receive: 0 in all blocks but one."""
        config = self.config
        x_IPD = self.patch_embed(patches_IPC)
        angles = vision_angles(layout.positions_IP2, config.width // config.num_heads)
        is_full_L = np.isin(np.arange(config.depth), config.full_attention_blocks)
        is_scored_L = np.arange(config.depth) == max(np.flatnonzero(is_full_L), default=config.depth - 1)

        def step(block, x, kinds):
            is_full, is_scored = kinds
            received = None
            if scored:
                nothing = jnp.zeros(x.shape[:2], jnp.float32)
                received = jax.lax.cond(is_scored, lambda: block.received(x, angles, layout), lambda: nothing)
            return block(x, angles, layout, is_full), received

        x_IPD, received_LIP = scan_layers(self.blocks, step, x_IPD, (is_full_L, is_scored_L), self.remat)
        x_IPD = self.merger_norm(x_IPD)
        x_IMD = x_IPD.reshape(x_IPD.shape[0], -1, self.merger_in.in_features)
        x_IMD = self.merger_out(gelu(self.merger_in(x_IMD)))
        return take_rows(x_IMD, layout.merged_IM), received_LIP
