"""HF checkpoint directories of the published form with random weights, for measuring sizes whose weights aren't at hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from zoomearth_jax.models.families import abstract_model
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.qwen2_5_vl.config import ModelConfig, to_hf_config
from zoomearth_jax.models.qwen2_5_vl.weights import INDEX, hf_tensors
from zoomearth_jax.runs.models import copy_side_files, resolve
from zoomearth_jax.terminal.progress import tracked


def shortened(config: ModelConfig, vision_blocks: int, layers: int) -> ModelConfig:
    """The same widths with fewer layers; the last vision block attends to the whole image, the others in windows."""
    vision = dataclasses.replace(config.vision, depth=vision_blocks, full_attention_blocks=(vision_blocks - 1,))
    return dataclasses.replace(config, vision=vision, text=dataclasses.replace(config.text, num_layers=layers))


def random_tensor(rng: np.random.Generator, key: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """Norm scales around one, everything else such that activations neither vanish nor explode in any depth."""
    if "norm" in key or "ln_q" in key:
        return (1 + 0.1 * rng.standard_normal(shape, np.float32)).astype(dtype)
    deviation = 0.02 if len(shape) == 1 or "embed_tokens" in key else np.prod(shape[1:]) ** -0.5
    return (rng.standard_normal(shape, np.float32) * np.float32(deviation)).astype(dtype)


def write_random_checkpoint(directory, config: ModelConfig, dtype="bfloat16", seed=0, shard_bytes=2**31) -> None:
    """Writes config.json and safetensors in files of about `shard_bytes` with an index; no tokenizer."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dtype, rng = jnp.dtype(dtype), np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    held: dict[str, np.ndarray] = {}

    def flush():
        name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        save_file(held, directory / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(held, name))
        held.clear()

    for key, shape in tracked(hf_tensors(abstract_model(config)).items(), "random weights"):
        held[key] = random_tensor(rng, key, shape, dtype)
        if sum(x.nbytes for x in held.values()) > shard_bytes:
            flush()
    if held:
        flush()
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    hf_config = to_hf_config(config) | {"torch_dtype": str(dtype)}
    (directory / "config.json").write_text(json.dumps(hf_config), encoding="utf-8")


def write_random_model(directory: Path, name: str) -> None:
    """A preset's sizes with random weights, the nano model's special ids and its tokenizer.

    The nano model keeps its episode; others have none, as published checkpoints, and get 512 px views.
    """
    (model, _), (nano, _) = preset(name), preset("nano")
    ids = {f.name: getattr(nano, f.name) for f in dataclasses.fields(nano) if f.name.endswith("_id")}
    write_random_checkpoint(directory, dataclasses.replace(model, **ids))
    copy_side_files(resolve("nano"), directory)
    if name != "nano":
        (directory / "episode.json").unlink()
