"""HF directories (config.json + safetensors) in and out: one key table, read in both directions.

Both key layouts are read: the published one (`model.layers…`, `visual…`) and transformers 5's own
(`model.language_model.layers…`, `model.visual…`). The published one is written; transformers 4.x and 5.x load it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zoomearth_jax.configs.model import ModelConfig, from_hf_config, to_hf_config
from zoomearth_jax.errors import UserError

# our path -> HF's key; {} is the layer, in which our arrays are stacked
_NAMES = {
    "vision.patch_embed": "visual.patch_embed.proj",
    "vision.blocks.norm1": "visual.blocks.{}.norm1",
    "vision.blocks.norm2": "visual.blocks.{}.norm2",
    "vision.blocks.qkv": "visual.blocks.{}.attn.qkv",
    "vision.blocks.proj": "visual.blocks.{}.attn.proj",
    "vision.blocks.mlp.gate_proj": "visual.blocks.{}.mlp.gate_proj",
    "vision.blocks.mlp.up_proj": "visual.blocks.{}.mlp.up_proj",
    "vision.blocks.mlp.down_proj": "visual.blocks.{}.mlp.down_proj",
    "vision.merger_norm": "visual.merger.ln_q",
    "vision.merger_in": "visual.merger.mlp.0",
    "vision.merger_out": "visual.merger.mlp.2",
    "decoder.embed": "model.embed_tokens",
    "decoder.layers.input_norm": "model.layers.{}.input_layernorm",
    "decoder.layers.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "decoder.layers.q_proj": "model.layers.{}.self_attn.q_proj",
    "decoder.layers.k_proj": "model.layers.{}.self_attn.k_proj",
    "decoder.layers.v_proj": "model.layers.{}.self_attn.v_proj",
    "decoder.layers.o_proj": "model.layers.{}.self_attn.o_proj",
    "decoder.layers.mlp.gate_proj": "model.layers.{}.mlp.gate_proj",
    "decoder.layers.mlp.up_proj": "model.layers.{}.mlp.up_proj",
    "decoder.layers.mlp.down_proj": "model.layers.{}.mlp.down_proj",
    "decoder.norm": "model.norm",
    "decoder.lm_head": "lm_head",
}


def _published_key(key: str) -> str:
    key = re.sub(r"^model\.visual\.", "visual.", key)
    return re.sub(r"^model\.language_model\.", "model.", key)


def _to_hf(path: str, leaf: str, array: np.ndarray, config: ModelConfig) -> np.ndarray:
    if path == "vision.patch_embed":  # our [C x t x p x p, D] is a flattened three-dimensional convolution
        v = config.vision
        return array.T.reshape(-1, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    return array.T if leaf == "kernel" else array


def _from_hf(path: str, leaf: str, array: np.ndarray) -> np.ndarray:
    if path == "vision.patch_embed":
        return array.reshape(array.shape[0], -1).T
    return array.T if leaf == "kernel" else array


def _params(model) -> Iterator[tuple[tuple, str, str, nnx.Param]]:
    """Yields (path in the state, module path, leaf name, parameter)."""
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        yield path, ".".join(map(str, path[:-1])), str(path[-1]), param


def _hf_keys(path: str, leaf: str, num_layers: int | None) -> list[str]:
    suffix = "bias" if leaf == "bias" else "weight"
    return [f"{_NAMES[path]}.{suffix}".format(layer) for layer in range(num_layers or 1)]


class _Tensors:
    """The tensors of all safetensors files of a directory, opened lazily, under their published names."""

    def __init__(self, directory: Path):
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise UserError(f"{directory}: no *.safetensors file; give an HF checkpoint directory")
        self._where = {}
        for file in files:
            try:
                handle = safe_open(file, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: not a readable safetensors file ({error})") from None
            self._where.update({_published_key(key): (handle, key) for key in handle.keys()})  # noqa: SIM118
        self.unread = set(self._where)

    def read(self, key: str, where: Path) -> np.ndarray:
        if key not in self._where:
            raise UserError(f"{where}: tensor {key} is missing")
        self.unread.discard(key)
        handle, name = self._where[key]
        return handle.get_tensor(name)


def read_config(directory: Path) -> ModelConfig:
    """The model's config from an HF directory; UserError when it is absent, broken or another architecture."""
    file = directory / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{directory}: no config.json; give an HF checkpoint directory") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file}: expected a JSON object")
    return from_hf_config(raw, str(file))


def load_pretrained(cls, directory):
    """See `Qwen2_5_VL.from_pretrained`: parameters become float32, `dtype` is the type of the computation."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give an HF checkpoint directory")
    config = read_config(directory)
    tensors = _Tensors(directory)
    model = nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))
    flat = {}
    for path, module, leaf, param in _params(model):
        stacked = "{}" in _NAMES[module]
        layers = []
        for key in _hf_keys(module, leaf, param.shape[0] if stacked else None):
            array = _from_hf(module, leaf, tensors.read(key, directory))
            if array.shape != param.shape[stacked:]:
                raise UserError(f"{directory}: {key} has shape {array.shape}, the config says {param.shape[stacked:]}")
            layers.append(array.astype(np.float32))
        flat[path] = jnp.asarray(np.stack(layers) if stacked else layers[0])
    if config.text.tie_embeddings:
        tensors.unread.discard("lm_head.weight")
    if tensors.unread:
        raise UserError(f"{directory}: unknown tensors {', '.join(sorted(tensors.unread)[:4])}")
    nnx.update(model, nnx.from_flat_state({path: nnx.Param(array) for path, array in flat.items()}))
    return model


def save_pretrained(model, directory, dtype=None) -> None:
    """See `Qwen2_5_VL.save_pretrained`. The files appear whole or not at all."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for _, module, leaf, param in _params(model):
        array = np.asarray(jax.device_get(param[...] if dtype is None else param[...].astype(dtype)))
        if array.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16):
            raise ValueError(f"{module}.{leaf} is {array.dtype}")
        stacked = "{}" in _NAMES[module]
        keys = _hf_keys(module, leaf, array.shape[0] if stacked else None)
        for key, layer in zip(keys, array if stacked else [array], strict=True):
            tensors[key] = np.ascontiguousarray(_to_hf(module, leaf, layer, model.config))
    partial = directory / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(to_hf_config(model.config), indent=2) + "\n", encoding="utf-8")
