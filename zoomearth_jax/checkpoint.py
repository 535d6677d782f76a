"""Run directories: config.json, tokenizer, episode.json, the run's settings, and orbax checkpoints of the whole state."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.io import from_dict, load_yaml
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.configs.model import to_hf_config
from zoomearth_jax.data_pipeline.rows import RowBuilder
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.hf import read_config
from zoomearth_jax.models.lora import add_lora, merge_lora
from zoomearth_jax.models.qwen2_5_vl import Qwen2_5_VL, abstract_model
from zoomearth_jax.models.sharding import param_shardings
from zoomearth_jax.rl.learner import TrainState


def _flat(tree) -> dict[str, jax.Array]:
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in jax.tree.leaves_with_path(tree)}


def write_rows(directory: Path, rows: RowBuilder) -> None:
    """Writes the tokenizer, episode.json, and generation_config.json with the end tokens."""
    rows.tokenizer.save_pretrained(directory)
    for name, data in (("episode", dataclasses.asdict(rows.episode)), ("generation_config", rows.generation)):
        (Path(directory) / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def write_run_header(directory: Path, model: Qwen2_5_VL, rows: RowBuilder) -> None:
    """Writes what a checkpoint needs to become a model again: config.json, and what `write_rows` writes."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(to_hf_config(model.config), indent=2) + "\n", encoding="utf-8")
    write_rows(directory, rows)


class Checkpoints:
    """The checkpoints of a run; keeps the last `keep`. Use as a context manager: leaving it waits for pending writes.

    Each has two items: `params`, all parameters under their paths in the model, and `training`, the rest of the state.
    """

    def __init__(self, directory: Path, keep: int = 2):
        """Opens `directory`/checkpoints, which need not exist."""
        self.directory = Path(directory).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
            item_handlers={name: ocp.StandardCheckpointHandler() for name in ("params", "training")},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The last complete step."""
        return self._manager.latest_step()

    def dtype(self) -> str:
        """The type that most parameters of the last checkpoint have."""
        if self.latest is None:
            raise UserError(f"{self.directory}: no complete checkpoint")
        saved = self._manager.item_metadata(self.latest)["params"].tree
        names = [str(leaf.dtype) for leaf in saved.values()]
        return max(set(names), key=names.count)

    def save(self, step: int, state: TrainState) -> None:
        """Writes a state in the background; a step appears whole or not at all."""
        items = {name: ocp.args.StandardSave(flat) for name, flat in _items(state).items()}
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, state: TrainState) -> TrainState:
        """The last checkpoint in the form of `state`; UserError where names or shapes differ."""
        restored = self._restore(_items(state))
        training = _unflatten({"opt_state": state.opt_state, "step": state.step}, restored["training"])
        parts = (_unflatten(part, restored["params"]) for part in (state.trainable, state.frozen))
        return TrainState(*parts, training["opt_state"], training["step"])

    def save_params(self, step: int, model: Qwen2_5_VL) -> None:
        """Writes a model's parameters alone: enough to load it, not to resume."""
        params = ocp.args.StandardSave(_flat(nnx.state(model, nnx.Param)))
        self._manager.save(step, args=ocp.args.Composite(params=params))

    def restore_params(self, model: Qwen2_5_VL, mesh: Mesh | None = None) -> None:
        """Puts the last checkpoint's parameters into a (possibly abstract) model, in its types, sharded over the mesh."""
        params = nnx.state(model, nnx.Param)
        shardings = None if mesh is None else _flat(param_shardings(params, mesh))
        nnx.update(model, _unflatten(params, self._restore({"params": _flat(params)}, shardings)["params"]))

    def _restore(self, items: dict[str, dict], shardings: dict | None = None) -> dict[str, dict]:
        if self.latest is None:
            raise UserError(f"{self.directory}: no complete checkpoint")
        saved = self._manager.item_metadata(self.latest)
        for name, wanted in items.items():
            _check_same(self.directory, saved[name].tree, wanted)
        args = {name: ocp.args.StandardRestore(_abstract(wanted, shardings)) for name, wanted in items.items()}
        return self._manager.restore(self.latest, args=ocp.args.Composite(**args))


def _items(state: TrainState) -> dict[str, dict]:
    return {
        "params": _flat(state.trainable) | _flat(state.frozen),
        "training": _flat({"opt_state": state.opt_state, "step": state.step}),
    }


def _abstract(flat: dict, shardings: dict | None) -> dict:
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[key] if shardings else single)
        for key, x in flat.items()
    }


def _unflatten(template, flat: dict):
    leaves = [
        flat[jax.tree_util.keystr(path, simple=True, separator=".")] for path, _ in jax.tree.leaves_with_path(template)
    ]
    return jax.tree.unflatten(jax.tree.structure(template), [jax.numpy.asarray(x) for x in leaves])


def _check_same(directory, saved: dict, wanted: dict) -> None:
    different = sorted(set(saved) ^ set(wanted))
    different += [key for key in sorted(set(saved) & set(wanted)) if tuple(saved[key].shape) != np.shape(wanted[key])]
    if different:
        raise UserError(
            f"{directory}: a checkpoint of another model or optimizer; they differ in {', '.join(different[:3])}"
        )


def load_run_model(directory: Path, compute: ComputeConfig, mesh: Mesh | None = None) -> Qwen2_5_VL:
    """The model of a run directory, from its last complete checkpoint; adapters are merged into their layers."""
    lora = _run_lora(Path(directory) / "run.yaml")
    model = abstract_model(read_config(Path(directory)), compute)
    model = nnx.eval_shape(lambda model: add_lora(model, lora, nnx.Rngs(0)), model)
    with Checkpoints(directory) as checkpoints:
        checkpoints.restore_params(model, mesh)
    return merge_lora(model)


def _run_lora(settings: Path) -> LoRAConfig:
    """The adapters that a run's settings ask for."""
    data = load_yaml(settings) if settings.exists() else {}
    return from_dict(LoRAConfig, data.get("lora", {}), f"{settings}: lora")
