"""The shipped policy in a larger decoder that writes the same tokens: what it adds is zeros, which take as long as any numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoomearth_jax.models.families import abstract_model
from zoomearth_jax.models.qwen2_5_vl.config import TextConfig
from zoomearth_jax.runs.models import load_model, save_model

POLICY = "nano-grpo"
# sizes of the decoder; heads stay as wide as they were
GROWN: dict[str, dict[str, int]] = {
    "nano": {},
    "100m": {"width": 768, "num_layers": 12, "num_heads": 32, "num_kv_heads": 2, "mlp_dim": 3072},
}


def write_grown(directory, sizes: dict[str, int]) -> None:
    """Writes the policy, its decoder grown to `sizes`, as an HF checkpoint in float32."""
    model, rows = load_model(POLICY)
    if sizes:
        small = model.config.text
        shrink = small.width / sizes["width"]  # of the mean square over the width, which the norms divide by
        text = dataclasses.replace(small, **sizes, norm_eps=small.norm_eps * shrink)
        vision = dataclasses.replace(model.config.vision, out_dim=text.width)
        grown = abstract_model(dataclasses.replace(model.config, text=text, vision=vision), model.compute)
        pure, graph = dict(nnx.to_flat_state(nnx.state(model, nnx.Param))), nnx.graphdef(grown)
        state = nnx.to_flat_state(nnx.state(grown, nnx.Param))
        new = [(path, x.replace(_grown(path, pure[path][...], x.shape, small, text, shrink))) for path, x in state]
        model = nnx.merge(graph, nnx.from_flat_state(new))
    save_model(Path(directory), model, rows, "float32")


def _grown(path: tuple, x, shape: tuple[int, ...], small: TextConfig, text: TextConfig, shrink: float):
    """One parameter, padded with zeros to `shape`; layers [L, ...] come after those that were there."""
    x = np.asarray(x)
    if x.shape == shape:
        return jnp.asarray(x)
    if path[0] == "decoder" and "norm" in path[-2]:
        x = x * np.sqrt(shrink)
    if "q_proj" in path:
        x = _spread_heads(x, small, text)
    if "o_proj" in path:
        x = _spread_heads(x.swapaxes(1, 2), small, text).swapaxes(1, 2)
    return jnp.asarray(np.pad(x, [(0, to - size) for size, to in zip(x.shape, shape, strict=True)]))


def _spread_heads(x, small: TextConfig, text: TextConfig):
    """Query heads along the last axis, each moved to a place of its own key-value head's group."""
    groups = small.num_heads // small.num_kv_heads, text.num_heads // text.num_kv_heads
    split = x.reshape(*x.shape[:-1], small.num_kv_heads, groups[0], small.head_dim)
    wide = np.pad(split, [(0, 0)] * (x.ndim) + [(0, groups[1] - groups[0]), (0, 0)])
    return wide.reshape(*x.shape[:-1], -1)
