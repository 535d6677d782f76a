"""The family Qwen2.5-VL: configuration, vision, decoder, model, weights. What it exports is `models.family.Family`."""

from __future__ import annotations

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.models.qwen2_5_vl.config import ModelConfig, from_hf_config, to_hf_config
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from zoomearth_jax.models.qwen2_5_vl.weights import source_dtype, write_checkpoint

__all__ = ["from_hf_config", "load_pretrained", "make", "source_dtype", "to_hf_config", "write_checkpoint"]


def make(config: ModelConfig, compute: ComputeConfig, rngs) -> Qwen2_5_VL:
    """A model with random parameters."""
    return Qwen2_5_VL(config, compute=compute, rngs=rngs)


def load_pretrained(directory, compute: ComputeConfig | None, mesh) -> Qwen2_5_VL:
    """See `Qwen2_5_VL.from_pretrained`."""
    return Qwen2_5_VL.from_pretrained(directory, compute=compute, mesh=mesh)
