"""The families of models that are known, by the model_type of their config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flax import nnx

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.models import qwen2_5_vl
from zoomearth_jax.models.config_file import raw_config
from zoomearth_jax.models.family import Family, Sizes, VisionLanguageModel

FAMILIES: dict[str, Family] = {"qwen2_5_vl": qwen2_5_vl}


def family_of(config: Sizes) -> Family:
    """The family of a model's sizes."""
    return FAMILIES[config.family]


def read_config(directory: Path) -> Any:
    """The sizes of the model in a directory.

    Raises:
        UserError: no config.json, a broken one, or an architecture that no family has.
    """
    raw, where = raw_config(directory)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{where}: model_type is {kind!r}, expected {' or '.join(map(repr, FAMILIES))}")
    return FAMILIES[kind].from_hf_config(raw, where)


def abstract_model(config: Sizes, compute: ComputeConfig = ComputeConfig()) -> VisionLanguageModel:
    """The model with shapes in place of arrays."""
    return nnx.eval_shape(lambda: family_of(config).make(config, compute, nnx.Rngs(0)))


def load_pretrained(directory: Path, compute: ComputeConfig | None = None, mesh=None) -> VisionLanguageModel:
    """The model of a directory with safetensors, whatever its family.

    Args:
        compute: types and backends; parameters are converted to `compute.param_dtype` on the way, float32 by default.
        mesh: where the parameters go, sharded by `models.sharding.RULES`; one device by default.

    Raises:
        UserError: an unreadable directory, another architecture, or an unknown, missing or mis-shaped tensor, by name.
    """
    return family_of(read_config(directory)).load_pretrained(directory, compute, mesh)


def write_checkpoint(model: VisionLanguageModel, directory: Path, dtype: str | None = None) -> None:
    """Writes config.json and safetensors in the form of the model's family, rounded to `dtype`."""
    family_of(model.config).write_checkpoint(model, directory, dtype)


def hf_config(config: Sizes) -> dict[str, Any]:
    """The data of config.json."""
    return family_of(config).to_hf_config(config)
