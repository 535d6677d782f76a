"""Run directories: config.json, tokenizer, episode.json, the run's settings, and orbax checkpoints of the whole state."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.model import to_hf_config
from zoomearth_jax.data_pipeline.rows import RowBuilder
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.hf import read_config
from zoomearth_jax.models.qwen2_5_vl import Qwen2_5_VL, abstract_model

_PARAMS = ("trainable", "frozen")


def _flat(tree) -> dict[str, jax.Array]:
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in jax.tree.leaves_with_path(tree)}


def write_episode(directory: Path, episode: EpisodeConfig) -> None:
    """Writes episode.json."""
    (Path(directory) / "episode.json").write_text(json.dumps(dataclasses.asdict(episode), indent=2) + "\n", encoding="utf-8")


def write_run_header(directory: Path, model: Qwen2_5_VL, rows: RowBuilder) -> None:
    """Writes what a checkpoint needs to become a model again: config.json, the tokenizer, episode.json."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(to_hf_config(model.config), indent=2) + "\n", encoding="utf-8")
    rows.tokenizer.save_pretrained(directory)
    write_episode(directory, rows.episode)


class Checkpoints:
    """The checkpoints of a run; keeps the last `keep`. Use as a context manager: leaving it waits for pending writes."""

    def __init__(self, directory: Path, keep: int = 2):
        """Opens `directory`/checkpoints, which need not exist."""
        self.directory = Path(directory).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The last complete step."""
        return self._manager.latest_step()

    def save(self, step: int, state) -> None:
        """Writes a state (a NamedTuple of pytrees) in the background; a step appears whole or not at all."""
        self._manager.save(step, args=ocp.args.StandardSave({name: _flat(part) for name, part in state._asdict().items()}))

    def restore(self, state):
        """The last checkpoint in the form of `state`; UserError where names or shapes differ."""
        saved = self._metadata()
        wanted = {name: _flat(part) for name, part in state._asdict().items()}
        for part, leaves in wanted.items():
            _check_same(self.directory, saved.get(part) or {}, leaves)
        restored = self._manager.restore(self.latest, args=ocp.args.StandardRestore(_abstract(wanted)))
        return type(state)(*(_unflatten(getattr(state, name), restored[name]) for name in state._fields))

    def restore_params(self, model: Qwen2_5_VL) -> None:
        """Puts the last checkpoint's parameters into a (possibly abstract) model."""
        state = nnx.state(model, nnx.Param)
        saved = self._metadata()
        merged = {key: leaf for part in _PARAMS for key, leaf in (saved.get(part) or {}).items()}
        _check_same(self.directory, merged, _flat(state))
        wanted = {part: {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in saved[part].items()} for part in _PARAMS if saved.get(part)}
        restored = ocp.PyTreeCheckpointer().restore(
            self._manager.directory / str(self.latest) / "default",
            args=ocp.args.PyTreeRestore(item=wanted, partial_restore=True),
        )
        nnx.update(model, _unflatten(state, {k: x for part in wanted for k, x in restored[part].items()}))

    def _metadata(self) -> dict:
        if self.latest is None:
            raise UserError(f"{self.directory}: no complete checkpoint")
        return self._manager.item_metadata(self.latest).tree


def _abstract(tree):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _unflatten(template, flat: dict):
    leaves = [flat[jax.tree_util.keystr(path, simple=True, separator=".")] for path, _ in jax.tree.leaves_with_path(template)]
    return jax.tree.unflatten(jax.tree.structure(template), [jax.numpy.asarray(x) for x in leaves])


def _check_same(directory, saved: dict, wanted: dict) -> None:
    different = sorted(set(saved) ^ set(wanted))
    different += [key for key in sorted(set(saved) & set(wanted)) if tuple(saved[key].shape) != np.shape(wanted[key])]
    if different:
        raise UserError(f"{directory}: a checkpoint of another model or optimizer; they differ in {', '.join(different[:3])}")


def load_run_model(directory: Path) -> Qwen2_5_VL:
    """The model of a run directory, from its last complete checkpoint."""
    model = abstract_model(read_config(Path(directory)))
    with Checkpoints(directory) as checkpoints:
        checkpoints.restore_params(model)
    return model
