"""Writes an HF checkpoint directory of the published form with random weights, shard by shard, without torch.

    python tests/random_checkpoint.py DIR --preset qwen2_5_vl_3b [--vision-blocks 2 --layers 2] [--dtype bfloat16]
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.real_tokenizer import write_tokenizer
from zoomearth_jax.configs.model import ModelConfig, to_hf_config
from zoomearth_jax.configs.presets import preset
from zoomearth_jax.models.hf import INDEX, _hf_shape, _tensors
from zoomearth_jax.models.qwen2_5_vl import abstract_model


def shortened(config: ModelConfig, vision_blocks: int, layers: int) -> ModelConfig:
    """The full widths with fewer layers; the last vision block attends to the whole image, the others in windows."""
    vision = dataclasses.replace(config.vision, depth=vision_blocks, full_attention_blocks=(vision_blocks - 1,))
    return dataclasses.replace(config, vision=vision, text=dataclasses.replace(config.text, num_layers=layers))


def random_tensor(rng, key: str, shape: tuple, dtype) -> np.ndarray:
    """Norm scales around one, everything else small, so that activations neither vanish nor explode in any depth."""
    if "norm" in key or "ln_q" in key:
        return (1 + 0.1 * rng.standard_normal(shape, np.float32)).astype(dtype)
    deviation = 0.02 if len(shape) == 1 or "embed_tokens" in key else np.prod(shape[1:]) ** -0.5
    return (rng.standard_normal(shape, np.float32) * np.float32(deviation)).astype(dtype)


def write_checkpoint(directory, config: ModelConfig, dtype="bfloat16", seed=0, shard_bytes=2**31) -> None:
    """Shards with an index, and config.json."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dtype, rng, number, weight_map, held = jnp.dtype(dtype), np.random.default_rng(seed), 0, {}, {}

    def flush():
        nonlocal number, held
        number += 1
        name = f"model-{number:05}.safetensors"
        save_file(held, directory / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(held, name))
        held = {}

    for tensor in _tensors(abstract_model(config)):
        for key in tensor.keys:
            held[key] = random_tensor(rng, key, _hf_shape(tensor, config), dtype)
            if sum(x.nbytes for x in held.values()) > shard_bytes:
                flush()
    flush()
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(to_hf_config(config) | {"torch_dtype": str(dtype)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--preset", default="qwen2_5_vl_3b")
    parser.add_argument("--vision-blocks", type=int)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    config, _ = preset(args.preset)
    if args.layers or args.vision_blocks:
        config = shortened(config, args.vision_blocks or config.vision.depth, args.layers or config.text.num_layers)
    write_checkpoint(args.directory, config, args.dtype)
    write_tokenizer(args.directory, config.bos_id)


if __name__ == "__main__":
    main()
