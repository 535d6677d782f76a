"""HF directories (config.json + safetensors) in and out: one key table, read in both directions.

Both key layouts are read: the published one (`model.layers…`, `visual…`) and transformers 5's own
(`model.language_model.layers…`, `model.visual…`). The published one is written; transformers 4.x and 5.x load it.

Tensors stream: each is read in the slices that this process's devices hold, a few layers at a time, and written out in
files of bounded size, so the host never holds more than the largest tensor and a gigabyte.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.io import read_json
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import staged_model
from zoomearth_jax.models.config_file import raw_config
from zoomearth_jax.models.qwen2_5_vl.config import ModelConfig, from_hf_config, to_hf_config
from zoomearth_jax.models.sharding import param_shardings
from zoomearth_jax.terminal.progress import Progress, tracked

CHUNK_BYTES = 256 * 2**20  # of layers that are read together
SHARD_BYTES = 2**30  # of an exported file
INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")

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


# what other programs write before or in place of the published names; the first rule that fits is applied, then all again
_PREFIXES = (
    (
        r"^(module|_orig_mod|_forward_module|base_model\.model)\.",
        "",
    ),  # data-parallel wrappers, torch.compile, merged PEFT
    (r"\._(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.", "."),
    (r"^model\.(?=visual\.|lm_head\.|language_model\.|model\.)", ""),  # transformers 5; a model saved inside another
    (r"^vision_tower\.", "visual."),
    (r"^language_model\.(?=lm_head\.)", ""),
    (r"^language_model\.(model\.)?", "model."),
)
_BUFFERS = re.compile(
    r"\.(rotary_emb|rotary_pos_emb)\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$"
)  # computed anew


def _published_key(key: str) -> str:
    for pattern, replacement in _PREFIXES:
        key, count = re.subn(pattern, replacement, key)
        if count:
            return _published_key(key)
    return key


class _Tensor(NamedTuple):
    """One of our parameters: its path in the state, the HF keys of its layers (one if not stacked), and its kind."""

    path: tuple
    keys: tuple[str, ...]
    kind: str  # "kernel" is transposed, "patches" a flattened three-dimensional convolution, "plain" as it is
    stacked: bool
    param: nnx.Param


def _tensors(model) -> Iterator[_Tensor]:
    """The model's parameters in the order of their files."""
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        module, leaf = ".".join(map(str, path[:-1])), str(path[-1])
        if module not in _NAMES:
            raise ValueError(f"{module}.{leaf} has no place in an HF checkpoint; merge adapters first (merge_lora)")
        name = f"{_NAMES[module]}.{'bias' if leaf == 'bias' else 'weight'}"
        stacked = "{}" in name
        kind = "patches" if module == "vision.patch_embed" else "kernel" if leaf == "kernel" else "plain"
        yield _Tensor(path, tuple(map(name.format, range(param.shape[0] if stacked else 1))), kind, stacked, param)


class _Source:
    """The tensors of a directory's safetensors files, opened lazily, under their published names."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._slices: dict[str, Any] = {}
        for file in _weight_files(directory):
            try:
                handle = safe_open(file, framework="numpy")
            except (SafetensorError, OSError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"{file}: not a readable safetensors file ({reason}); copy it again") from None
            for key in handle.keys():  # noqa: SIM118
                self._add(_published_key(key), key, handle, file)

    def _add(self, name: str, key: str, handle, file: Path) -> None:
        if _BUFFERS.search(name):
            return
        if name in self._slices:
            raise UserError(
                f"{file}: {key} is there twice, as {name} under another name or in another file; remove one"
            )
        self._slices[name] = handle.get_slice(key)

    def check(self, model) -> None:
        """Compares names, shapes and types with what the config says, before anything is read."""
        wanted = hf_tensors(model)
        for key, shape in wanted.items():
            if key not in self._slices:
                raise UserError(f"{self.directory}: tensor {key} is missing")
            found, kind = tuple(self._slices[key].get_shape()), self._slices[key].get_dtype()
            if found != shape:
                raise UserError(f"{self.directory}: {key} has shape {found}, the config says {shape}")
            if kind not in _FLOATS:
                raise UserError(f"{self.directory}: {key} is of type {kind}; quantised checkpoints are not supported")
        unknown = self._slices.keys() - wanted.keys()
        if model.config.text.tie_embeddings:
            unknown.discard("lm_head.weight")
        if unknown:
            more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
            raise UserError(f"{self.directory}: unknown tensors {', '.join(sorted(unknown)[:4])}{more}")

    def read(self, key: str, kind: str, index: tuple[slice, ...], dtype) -> np.ndarray:
        """A part of a tensor in our orientation."""
        tensor = self._slices[key]
        if kind == "kernel":
            part = tensor[index[1], index[0]].T
        elif kind == "patches":
            whole = tensor[:]
            part = whole.reshape(whole.shape[0], -1).T[index]
        else:
            part = tensor[index]
        return part.astype(dtype, copy=False)

    def dtype(self) -> str:
        """The type of most tensors, such as bfloat16."""
        names = [tensor.get_dtype() for tensor in self._slices.values()]
        common = max(set(names), key=names.count)
        return {"BF16": "bfloat16", "F16": "float16"}.get(common, "float32")


def _weight_files(directory: Path) -> list[Path]:
    """The files that the index names, or all of them where there is none."""
    index = directory / INDEX
    if not index.exists():
        files = sorted(file for file in directory.glob("*.safetensors") if file.is_file())
        if not files:
            raise UserError(f"{directory}: {_without_safetensors(directory)}")
        return files
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index}: not a readable index (no weight_map from tensors to files)")
    files = [directory / Path(name).name for name in sorted(set(names.values()))]  # never outside the directory
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{directory}: {INDEX} names {', '.join(absent[:3])}, which is not there; copy it too")
    return files


def _without_safetensors(directory: Path) -> str:
    pickled = sorted(file.name for end in ("bin", "pt", "pth", "ckpt") for file in directory.glob(f"*.{end}"))
    if not pickled:
        return "no *.safetensors file; give an HF checkpoint directory or a run with a complete checkpoint"
    return (
        f"no *.safetensors file, and {pickled[0]} is not read, because pickled weights can run code; where you trust them, "
        "load them with transformers and save_pretrained them into another directory"
    )


def _hf_shape(tensor: _Tensor, config: ModelConfig) -> tuple[int, ...]:
    shape = tensor.param.shape[tensor.stacked :]
    if tensor.kind == "patches":
        v = config.vision
        return (shape[1], v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    return shape[::-1] if tensor.kind == "kernel" else shape


def hf_tensors(model) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a (possibly abstract) model's checkpoint has, in the order of its files."""
    return {key: _hf_shape(tensor, model.config) for tensor in _tensors(model) for key in tensor.keys}


@functools.partial(jax.jit, donate_argnums=0)
def _put_layers(stacked, layers, first):
    return jax.lax.dynamic_update_slice_in_dim(stacked, layers, first, axis=0)


def _load_tensor(source: _Source, tensor: _Tensor, sharding: Sharding) -> jax.Array:
    """A parameter on its devices; stacks are filled in place, CHUNK_BYTES of layers at a time."""
    shape, dtype = tensor.param.shape, tensor.param.dtype
    if not tensor.stacked:

        def whole(index):
            return source.read(tensor.keys[0], tensor.kind, index, dtype)

        return jax.make_array_from_callback(shape, sharding, whole)

    def chunk(first: int, count: int) -> jax.Array:
        def read(index):
            layers = range(first, first + count)[index[0]]
            parts = [source.read(tensor.keys[layer], tensor.kind, index[1:], dtype) for layer in layers]
            return np.stack(parts)

        return jax.make_array_from_callback((count, *shape[1:]), sharding, read)

    per_layer = int(np.prod(shape[1:])) * dtype.itemsize
    step = max(1, CHUNK_BYTES // per_layer)
    if step >= shape[0]:
        return chunk(0, shape[0])
    stacked = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()
    for first in range(0, shape[0], step):
        stacked = _put_layers(stacked, chunk(first, min(step, shape[0] - first)), first)
    return stacked


def load_as(cls, directory, compute: ComputeConfig | None = None, mesh: Mesh | None = None):
    """See `Qwen2_5_VL.from_pretrained`."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give an HF checkpoint directory")
    config = from_hf_config(*raw_config(directory))
    source = _Source(directory)
    compute = compute or ComputeConfig()
    model = nnx.eval_shape(lambda: cls(config, compute=compute, rngs=nnx.Rngs(0)))
    tensors = list(_tensors(model))
    source.check(model)
    shardings = _shardings(model, mesh)
    size = sum(tensor.param.size for tensor in tensors)
    with Progress("load", size, unit="parameters", quiet=size < 2**28) as bar:
        for tensor in tensors:
            array = _load_tensor(source, tensor, shardings[tensor.path])
            nnx.update(model, nnx.from_flat_state({tensor.path: tensor.param.replace(array)}))
            bar.update(array.size)
    return model


def _shardings(model, mesh: Mesh | None) -> dict[tuple, Sharding]:
    state = nnx.state(model, nnx.Param)
    if mesh is None:
        single = SingleDeviceSharding(jax.local_devices()[0])
        return {path: single for path, _ in nnx.to_flat_state(state)}
    return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(param_shardings(state, mesh))}


def source_dtype(directory: Path) -> str:
    """The type that most tensors of an HF directory have."""
    return _Source(Path(directory)).dtype()


def save_pretrained(model, directory, dtype: str | None = None) -> None:
    """See `Qwen2_5_VL.save_pretrained`."""
    with staged_model(directory, owner=jax.process_index() == 0) as staging:
        write_checkpoint(model, staging, dtype)


def write_checkpoint(model, directory: Path, dtype: str | None = None) -> None:
    """Writes config.json and the weights, in several files with an index where they are over SHARD_BYTES.

    All processes take part in gathering; the first one writes.
    """
    tensors = [(tensor, layer, key) for tensor in _tensors(model) for layer, key in enumerate(tensor.keys)]
    kind = jnp.dtype(dtype) if dtype else None
    shards = _plan_shards(tensors, kind)
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    )
    for name, shard in zip(names, tracked(shards, "save"), strict=True):
        arrays = {key: _to_hf(tensor, layer, model.config, kind) for tensor, layer, key in shard}
        if jax.process_index() == 0:
            save_file(arrays, directory / name, metadata={"format": "pt"})
            (directory / name).chmod(0o644)  # the library makes it readable only by its owner
    if jax.process_index() == 0:
        if len(shards) > 1:
            weight_map = {key: name for name, shard in zip(names, shards, strict=True) for _, _, key in shard}
            total = sum(_layer_bytes(tensor, kind) for tensor, _, _ in tensors)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        config = to_hf_config(model.config) | {"torch_dtype": str(kind or tensors[0][0].param.dtype)}
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _layer_bytes(tensor: _Tensor, dtype) -> int:
    return tensor.param.size // len(tensor.keys) * (dtype or tensor.param.dtype).itemsize


def _plan_shards(tensors: list, dtype) -> list[list]:
    """Consecutive tensors in files of at most SHARD_BYTES; a larger tensor is a file of its own."""
    shards: list[list] = [[]]
    room = SHARD_BYTES
    for item in tensors:
        size = _layer_bytes(item[0], dtype)
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(item)
        room -= size
    return shards


def _to_hf(tensor: _Tensor, layer: int, config: ModelConfig, dtype) -> np.ndarray:
    """Returns one tensor on the host, as HF has it."""
    array = tensor.param[...][layer] if tensor.stacked else tensor.param[...]
    array = array if dtype is None else array.astype(dtype)
    if array.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16):
        raise ValueError(f"{tensor.keys[layer]} is {array.dtype}")
    host = np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))
    shape = _hf_shape(tensor, config)
    return np.ascontiguousarray(host.reshape(shape) if tensor.kind == "plain" else host.T.reshape(shape))
