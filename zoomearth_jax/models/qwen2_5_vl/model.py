"""The whole model: HF's call signature on the outside, segments and caches for the rollout and the trainers inside."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.models.attention import KVCache, one_sample
from zoomearth_jax.models.family import Images
from zoomearth_jax.models.layers import Places, take_rows
from zoomearth_jax.models.qwen2_5_vl.config import ModelConfig
from zoomearth_jax.models.qwen2_5_vl.decoder import Decoder
from zoomearth_jax.models.qwen2_5_vl.patches import vision_layout
from zoomearth_jax.models.qwen2_5_vl.vision import VisionEncoder, patchify
from zoomearth_jax.models.rope import mrope_positions


class Qwen2_5_VL(nnx.Module):
    """Qwen2.5-VL of any size.

    Attributes:
        config: its sizes and special ids.
        compute: number types, attention backend and remat policy.
        vision: patches -> merged visual tokens.
        decoder: the language model.
    """

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig = ComputeConfig(), rngs: nnx.Rngs):
        """Random parameters; `compute` gives their type and that of the computation."""
        self.config, self.compute = config, compute
        self.vision = VisionEncoder(config, compute=compute, rngs=rngs)
        self.decoder = Decoder(config.text, compute=compute, rngs=rngs)

    @classmethod
    def from_pretrained(cls, directory, *, compute: ComputeConfig | None = None, mesh=None) -> Qwen2_5_VL:
        """Loads an HF directory (config.json and safetensors, in one file or several with an index).

        Args:
            directory: that of a published checkpoint, or one that `save_pretrained` wrote.
            compute: types and backends; parameters are converted to `compute.param_dtype` on the way, float32 by default.
            mesh: where the parameters go, sharded by `models.sharding.RULES`; one device by default.

        Raises:
            UserError: an unreadable directory, another architecture, or an unknown, missing or mis-shaped tensor, by name.
        """
        from zoomearth_jax.models.qwen2_5_vl.weights import load_as

        return load_as(cls, directory, compute, mesh)

    def save_pretrained(self, directory, *, dtype: str | None = None) -> None:
        """Writes config.json and safetensors as HF transformers reads them; `dtype` rounds, e.g. to bfloat16.

        An interruption leaves nothing that looks complete; other files in the directory stay.
        """
        from zoomearth_jax.models.qwen2_5_vl.weights import save_pretrained

        save_pretrained(self, directory, dtype)

    def __call__(self, input_ids, pixel_values=None, image_grid_thw=None, attention_mask=None):
        """Logits, from exactly the arrays that HF's model takes.

        Args:
            input_ids: integers [B, T], with an image placeholder id for each merged visual token.
            pixel_values: float [patches of all images, channels x frames x patch x patch], in merge-block order.
            image_grid_thw: integers [images, 3], frames (1), rows and columns of patches.
            attention_mask: [B, T], 1 where a token exists (left- or right-padded); all ones by default.

        Returns:
            float32 logits [B, T, V]; undefined where attention_mask is 0.

        Raises:
            ValueError: placeholders and image features don't agree in number, or an image has several frames.
        """
        ids_BT = np.asarray(input_ids)
        samples_BT = one_sample(
            np.ones(ids_BT.shape, bool) if attention_mask is None else np.asarray(attention_mask) != 0
        )
        if image_grid_thw is None:
            grids_BI2 = np.zeros((ids_BT.shape[0], 1, 2), np.int32)
            return _forward(self.compute)(self, ids_BT, samples_BT, grids_BI2)
        grids_I2 = _check_grids(image_grid_thw, pixel_values)
        image_of_row = _assign_images(ids_BT == self.config.image_token_id, grids_I2 // self.config.vision.merge_size)
        layout = vision_layout(grids_I2, self.config.vision)
        offsets = np.concatenate([[0], np.cumsum(grids_I2.prod(-1))[:-1]])
        flat_IP = np.where(layout.valid_IP, layout.source_IP + offsets[:, None], 0)
        feature_BM, grids_BI2 = _row_features(
            image_of_row, grids_I2 // self.config.vision.merge_size, layout.merged_IM.shape[1]
        )
        images = jnp.asarray(pixel_values)[flat_IP], layout, feature_BM
        return _forward(self.compute)(self, ids_BT, samples_BT, grids_BI2, *images)

    def encode_views(self, images: Images):
        """Merged visual tokens [I, M, D] of pictures that `ModelConfig.prepare` made ready."""
        layout = images.layout
        return self.vision(patchify(images.pixels, layout.positions_IP2, self.config.vision), layout)

    def scored_views(self, images: Images):
        """The same, and the attention [I, M] that each token receives (see `VisionEncoder.scored`)."""
        layout = images.layout
        return self.vision.scored(patchify(images.pixels, layout.positions_IP2, self.config.vision), layout)

    @property
    def head(self) -> Any:
        """See `Decoder.head`."""
        return self.decoder.head

    def logits(self, hidden_BTD, head=None):
        """float32 logits [..., V] of hidden states; `head` takes the place of the model's own."""
        return self.decoder.logits(hidden_BTD, head)

    def embed(self, ids_BT, features_BMD=None):
        """Token embeddings with image features at the placeholders.

        Args:
            ids_BT: token ids.
            features_BMD: each row's visual tokens in order of its placeholders; None where there are no images.

        Returns:
            [B, T, D].
        """
        x_BTD = self.decoder.lookup(ids_BT)
        if features_BMD is None:
            return x_BTD
        is_image_BT = ids_BT == self.config.image_token_id
        rank_BT = (jnp.cumsum(is_image_BT, axis=1) - 1).clip(0, features_BMD.shape[1] - 1)
        return jnp.where(is_image_BT[..., None], take_rows(features_BMD, rank_BT).astype(x_BTD.dtype), x_BTD)

    def segment(
        self,
        ids_BT,
        samples_BT,
        features_BMD=None,
        grids_BI2=None,
        start_B=None,
        past: KVCache | None = None,
        kept_BM=None,
    ):
        """Runs one segment of each row after the cached segments before it.

        Args:
            ids_BT: token ids of the segment.
            samples_BT: sample numbers (see `decoder_attention`). Positions run on from sample to sample: only their
                differences matter.
            features_BMD: visual tokens of the segment's images, and their merged grids_BI2; None without images.
            start_B: position of the segment's first token; 0 by default.
            past: cache of all earlier slots.
            kept_BM: numbers of the visual tokens in their whole picture, where it was pruned (see `mrope_positions`).

        Returns:
            hidden [B, T, D], the segment's own KVCache, and next_B, the position after the segment.
        """
        x_BTD, positions_3BT, next_B = self._inputs(start_B, ids_BT, samples_BT, features_BMD, grids_BI2, kept_BM)
        hidden_BTD, cache = self.decoder(x_BTD, positions_3BT, samples_BT, past)
        return hidden_BTD, cache, next_B

    def grouped(self, prompt, reply, places: Places | None = None):
        """Hidden states [A, U, D] of prompts and [B, T, D] of the B / A replies that follow each, in one pass.

        The same as `segment` of the prompts, and then of the replies after the repeated cache.

        Args:
            prompt, reply: (ids, samples, features, grids) as `segment` takes them.
            places: see `Decoder.grouped`.
        """
        x_AUD, positions_3AU, next_A = self._inputs(None, *prompt)
        start_B = jnp.repeat(next_A, reply[0].shape[0] // next_A.shape[0])
        x_BTD, positions_3BT, _ = self._inputs(start_B, *reply)
        return self.decoder.grouped(x_AUD, positions_3AU, prompt[1], x_BTD, positions_3BT, reply[1], places)

    def _inputs(self, start_B, ids_BT, samples_BT, features_BMD, grids_BI2, kept_BM=None):
        """Embeddings with images, positions, and the position after them."""
        if grids_BI2 is None:
            grids_BI2 = jnp.zeros((ids_BT.shape[0], 1, 2), jnp.int32)
        is_image_BT = ids_BT == self.config.image_token_id
        positions_3BT, next_B = mrope_positions(is_image_BT, samples_BT > 0, grids_BI2, start_B, kept_BM)
        return self.embed(ids_BT, features_BMD), positions_3BT, next_B


@functools.cache
def _forward(compute: ComputeConfig):
    """The compiled forward pass; of a model's structure and parameters, since `nnx.jit` takes no compiler options."""

    @functools.partial(jax.jit, static_argnums=0, compiler_options=compute.compiler_options)
    def run(graph, params, ids_BT, samples_BT, grids_BI2, patches_IPC=None, layout=None, feature_BM=None):
        model, features_BMD = nnx.merge(graph, params), None
        if layout is not None:
            features_IMD = model.vision(patches_IPC, layout)
            features_BMD = features_IMD.reshape(-1, features_IMD.shape[-1])[feature_BM]
        return model.decoder.logits(model.segment(ids_BT, samples_BT, features_BMD, grids_BI2)[0])

    return lambda model, *arrays: run(*nnx.split(model), *arrays)


def _check_grids(image_grid_thw, pixel_values) -> np.ndarray:
    grids = np.asarray(image_grid_thw)
    if (grids[:, 0] != 1).any():
        raise ValueError(f"images have one frame; got grids {grids.tolist()} (videos are not supported)")
    if len(pixel_values) != grids.prod(-1).sum():
        raise ValueError(f"{len(pixel_values)} patches for grids {grids.tolist()}, expected {grids.prod(-1).sum()}")
    return grids[:, 1:]


def _assign_images(is_image_BT, merged_I2) -> list[list[int]]:
    """Images of each row, in order: HF gives images to placeholders in reading order over the flattened batch."""
    counts, image = merged_I2.prod(-1), 0
    rows: list[list[int]] = []
    for row, left in enumerate(is_image_BT.sum(1).tolist()):
        rows.append([])
        while left > 0 and image < len(counts):
            rows[-1].append(image)
            left -= counts[image]
            image += 1
        if left != 0:
            raise ValueError(f"row {row}: placeholders and features of the images {rows[-1]} differ by {left}")
    if image != len(counts):
        raise ValueError(f"{len(counts)} images given, placeholders for {image}")
    return rows


def _row_features(rows: list[list[int]], merged_I2, budget: int):
    """Index [B, M] of each row's visual tokens into the flattened [I x M], and merged grids [B, I, 2]."""
    index = [
        np.concatenate([np.arange(merged_I2[i].prod()) + i * budget for i in row] or [np.zeros(0, int)]) for row in rows
    ]
    feature_BM = np.zeros((len(rows), max(map(len, index))), np.int32)
    grids_BI2 = np.zeros((len(rows), max(map(len, rows)), 2), np.int32)
    for b, row in enumerate(rows):
        feature_BM[b, : len(index[b])] = index[b]
        grids_BI2[b, : len(row)] = merged_I2[row]
    return feature_BM, grids_BI2
