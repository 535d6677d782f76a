"""A second family of models: visual tokens of 32 px by one linear layer, one-dimensional positions, weights in one file.

This file, and one line in `FAMILIES`, is all that a family is to the rest of the package. The decoder is the first family's.
"""

import dataclasses
import json
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.models.family import Images
from zoomearth_jax.models.layers import Linear, take_rows
from zoomearth_jax.models.qwen2_5_vl.config import TextConfig
from zoomearth_jax.models.qwen2_5_vl.decoder import Decoder

TEXT = TextConfig(
    vocab_size=597, width=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=96, mrope_section=(8, 0, 0)
)
CELL = 32 * 32 * 3


@dataclasses.dataclass(frozen=True)
class TinySizes:
    """The only size that there is."""

    family: ClassVar[str] = "tiny"
    merged_px: ClassVar[int] = 32
    image_token_id: int = 5
    width: int = TEXT.width
    vocab_size: int = TEXT.vocab_size
    placed_ids: tuple[int, ...] = (3, 4, 5, 6)
    token_flops: int = TEXT.num_layers * (2 * TEXT.width * (2 * TEXT.width + 2 * 32) + 6 * TEXT.width * TEXT.mlp_dim)
    pair_flops: int = TEXT.num_layers * 4 * TEXT.width
    branch_shares: ClassVar[dict[int, float]] = {}

    def prepare(self, pixels, grids):
        """Where each visual token's cell lies on the canvas."""
        side = pixels.shape[1] // 32
        cells = np.zeros((len(grids), side * side), np.int32)
        for i, (rows, columns) in enumerate(grids):
            cells[i, : rows * columns] = (np.arange(rows)[:, None] * side + np.arange(columns)).ravel()
        return Images(pixels, cells, grids[:, None])

    def vision_flops(self, grids):
        """One product a cell."""
        return 2.0 * CELL * self.width * int(np.prod(grids, axis=-1).sum())

    def cache_shape(self, rows, slots):
        """See `Sizes`."""
        return TEXT.num_layers, rows, TEXT.num_kv_heads, slots, TEXT.head_dim


class TinyModel(nnx.Module):
    """See `VisionLanguageModel`."""

    def __init__(self, config, compute, rngs):
        self.config, self.compute = config, compute
        self.vision = Linear(CELL, config.width, ("embed", None), compute=compute, rngs=rngs)
        self.decoder = Decoder(TEXT, compute=compute, rngs=rngs)

    def encode_views(self, images):
        """A linear layer of each cell's pixels."""
        count, side = images.pixels.shape[0], images.pixels.shape[1] // 32
        cells = images.pixels.reshape(count, side, 32, side, 32, 3).swapaxes(2, 3).reshape(count, side * side, CELL)
        return take_rows(self.vision(cells.astype(self.compute.dtype) / 255.0), images.layout)

    def scored_views(self, images):
        """The norm of each token; there is no attention."""
        features = self.encode_views(images)
        return features, jnp.linalg.norm(features, axis=-1)

    def _inputs(self, ids, samples, features, start, grids=None, kept=None):
        is_image, x = ids == self.config.image_token_id, self.decoder.lookup(ids)
        if features is not None:
            rank = (jnp.cumsum(is_image, axis=1) - 1).clip(0, features.shape[1] - 1)
            x = jnp.where(is_image[..., None], take_rows(features, rank), x)
        start = jnp.zeros(len(ids), jnp.int32) if start is None else start
        valid = samples > 0
        places = jnp.where(valid, start[:, None] + jnp.cumsum(valid, axis=1) - 1, 0)
        if kept is not None:  # positions of the whole picture
            count, rank = (is_image & valid).sum(1), (jnp.cumsum(is_image, axis=1) - 1).clip(0, kept.shape[1] - 1)
            gone = jnp.where(is_image, jnp.take_along_axis(kept, rank, axis=1) - rank, 0)
            after = (jnp.cumsum(is_image, axis=1) == count[:, None]) & ~is_image & (count > 0)[:, None]
            missing = grids.prod((1, 2)) - count
            places = jnp.where(valid, places + gone + jnp.where(after, missing[:, None], 0), 0)
            return x, jnp.stack([places] * 3), start + valid.sum(1) + missing
        return x, jnp.stack([places] * 3), start + valid.sum(1)

    def segment(self, ids_BT, samples_BT, features_BMD=None, grids_BI2=None, start_B=None, past=None, kept_BM=None):
        """See `VisionLanguageModel`."""
        x, positions, after = self._inputs(ids_BT, samples_BT, features_BMD, start_B, grids_BI2, kept_BM)
        hidden, cache = self.decoder(x, positions, samples_BT, past)
        return hidden, cache, after

    def grouped(self, prompt, reply, places=None):
        """See `VisionLanguageModel`."""
        x_AUD, positions, after = self._inputs(*prompt[:3], None)
        start = jnp.repeat(after, len(reply[0]) // len(after))
        x_BTD, reply_positions, _ = self._inputs(*reply[:3], start)
        return self.decoder.grouped(x_AUD, positions, prompt[1], x_BTD, reply_positions, reply[1], places)

    @property
    def head(self):
        """See `VisionLanguageModel`."""
        return self.decoder.head

    def logits(self, hidden_BTD, head=None):
        """See `VisionLanguageModel`."""
        return self.decoder.logits(hidden_BTD, head)


def from_hf_config(raw, where):
    """See `Family`."""
    return TinySizes()


def to_hf_config(config):
    """See `Family`."""
    return {"model_type": "tiny"}


def make(config, compute, rngs):
    """See `Family`."""
    return TinyModel(config, compute, rngs)


def _flat(model):
    return {".".join(map(str, path)): x for path, x in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def load_pretrained(directory, compute, mesh):
    """See `Family`; without meshes."""
    model, arrays = (
        make(TinySizes(), compute or ComputeConfig(), nnx.Rngs(0)),
        load_file(directory / "model.safetensors"),
    )
    for name, variable in _flat(model).items():
        variable[...] = jnp.asarray(arrays[name])
    return model


def write_checkpoint(model, directory, dtype=None):
    """See `Family`."""
    save_file({name: np.asarray(x[...]) for name, x in _flat(model).items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(to_hf_config(model.config)))


def source_dtype(directory):
    """See `Family`."""
    return "float32"
