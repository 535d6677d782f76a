"""Run directories: config.json, tokenizer, episode.json, the run's settings, and orbax checkpoints of the whole state."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.io import from_dict, load_yaml, to_dict
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.side_files import IMAGES, complete, view_images
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import write_file
from zoomearth_jax.models.families import abstract_model, hf_config, read_config
from zoomearth_jax.models.family import VisionLanguageModel
from zoomearth_jax.models.lora import add_lora, merge_lora
from zoomearth_jax.models.sharding import param_shardings
from zoomearth_jax.rl.state import TrainState
from zoomearth_jax.runs import saved_steps
from zoomearth_jax.terminal.progress import say


def _flat(tree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in jax.tree.leaves_with_path(tree)}


def write_rows(directory: Path, rows: RowBuilder) -> None:
    """Writes the tokenizer, episode.json, generation_config.json with the end tokens, and the processor's settings with the
    sizes of the views."""
    rows.tokenizer.save_pretrained(directory)
    images = {IMAGES: view_images(rows.layout, rows.processors.get(IMAGES, {}))}
    own = {"episode.json": dataclasses.asdict(rows.episode), "generation_config.json": rows.generation}
    for name, data in (rows.processors | images | own).items():
        write_file(Path(directory) / name, json.dumps(data, indent=2) + "\n")
    complete(directory)


def write_run_header(directory: Path, model: VisionLanguageModel, rows: RowBuilder) -> None:
    """Writes what a checkpoint needs to become a model again: config.json, and what `write_rows` writes."""
    write_file(Path(directory) / "config.json", json.dumps(hf_config(model.config), indent=2) + "\n")
    write_rows(directory, rows)


class Checkpoints:
    """The checkpoints of a run, written in the background. Use as a context manager: leaving it waits for pending writes.

    A step has the items `params`, all parameters under their paths in the model, `training`, the rest of the state, and
    `run`, which says what the step is of (see `saved_steps`). All processes must make one, and call its methods together.
    """

    def __init__(
        self, directory: Path, keep: int = 2, keep_best: int = 0, run: Mapping | None = None, best_by: str = ""
    ):
        """Takes `directory`/checkpoints, which need not exist; the first `save` makes it.

        Args:
            keep: steps to keep, the last ones.
            keep_best: steps to keep beside them, those with the highest scores.
            run: what to write into each step: plain data. Its `start` must be that of the step restored.
            best_by: what the scores are; steps with scores of something else count as without.
        """
        self.directory = Path(directory).absolute() / "checkpoints"
        self._run = dict(run or {})
        self._kept, self._best_by = (keep, keep_best), best_by

    @functools.cached_property
    def _keep(self) -> _Keep:
        return _Keep(self.directory, *self._kept, self._best_by)

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        handlers = {name: ocp.StandardCheckpointHandler() for name in ("params", "training")}
        with self._written():
            return ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(preservation_policy=self._keep, lightweight_initialize=True),
                item_handlers=handlers | {"run": ocp.JsonCheckpointHandler()},
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if "_manager" in vars(self):
            with self._written():
                self._manager.close()

    @property
    def latest(self) -> int | None:
        """The last complete step."""
        return max(saved_steps.numbers(self.directory), default=None)

    def save(self, step: int, state: TrainState, score: float | None = None) -> None:
        """Copies a state and writes it in the background; a step appears whole or not at all. One that is there stays.

        Args:
            step: its number.
            score: what `keep_best` goes by; higher is better.

        Raises:
            UserError: this write or the one before it failed.
        """
        self._save(step, _items(state), score)

    def save_params(self, step: int, model: VisionLanguageModel) -> None:
        """Writes only a model's parameters: enough to load it, not to resume."""
        self._save(step, {"params": _flat(nnx.state(model, nnx.Param))})

    def _save(self, step: int, items: saved_steps.Items, score: float | None = None) -> None:
        if step in self._manager.all_steps():
            return
        record = {
            "step": step,
            "score": None if score is None else float(score),
            "score_of": self._best_by,
            "versions": {name: importlib.metadata.version(name) for name in ("zoomearth_jax", "jax")},
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "run": self._run,
            "arrays": saved_steps.describe(items),
        }
        args = {name: ocp.args.StandardSave(flat) for name, flat in items.items()}
        self._keep.scores[step] = record["score"]
        with self._written():
            self._manager.save(step, args=ocp.args.Composite(run=ocp.args.JsonSave(saved_steps.seal(record)), **args))

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Turns what orbax says of a failed write into one line."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise
        except Exception as error:  # of many kinds
            raise UserError(f"{self.directory}: a checkpoint can't be written ({saved_steps.reason(error)})") from error

    def restore(self, state: TrainState) -> TrainState:
        """The newest readable step in the form of `state`, on its devices; consumes `state`, so that there is one at a time.

        Later steps that can't be read are renamed to N.unreadable, and half-written ones are removed.

        Raises:
            UserError: there is none, or it is of another model or optimizer, or of a run with another `start`.
        """
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _items(state))
        self._clear(saved_steps.half_written(self.directory))
        if self.latest is None:
            raise UserError(f"{self.directory}: no complete checkpoint to resume from; --overwrite starts the run anew")
        jax.tree.map(lambda x: x.delete(), state)
        step = saved_steps.newest(self.directory, wanted)
        if step.record["run"].get("start") != self._run.get("start"):
            raise UserError(f"{self.directory}: the model that the run started from has changed since; start a new run")
        self._set_aside([number for number in saved_steps.numbers(self.directory) if number > step.number])
        params = step.items["params"]
        training = _unflatten(_rest(state), step.items["training"])
        trainable, frozen = (_unflatten(part, params) for part in (state.trainable, state.frozen))
        return TrainState(trainable, frozen, **training)

    def _clear(self, folders: list[Path]) -> None:
        if jax.process_index() == 0:
            for folder in folders:
                say(f"warning: {folder}: half-written; removed")
                shutil.rmtree(folder)
        saved_steps.together("cleared the checkpoints")

    def _set_aside(self, steps: list[int]) -> None:
        """Makes room for the steps to come, which may have the same numbers."""
        if jax.process_index() == 0:
            for step in steps:
                aside = self.directory / f"{step}.unreadable"
                shutil.rmtree(aside, ignore_errors=True)
                (self.directory / str(step)).rename(aside)
        saved_steps.together("set steps aside")
        self._manager.reload()


class _Keep:
    """Orbax's policy on what stays: the last steps, and those with the highest scores."""

    def __init__(self, directory: Path, last: int, best: int, best_by: str):
        """Reads the scores of the steps that are there, if they matter."""
        self._last, self._best = last, best
        self.scores = {step: _score(directory / str(step), best_by) for step in saved_steps.numbers(directory) if best}

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Whether each checkpoint stays."""
        steps = sorted(info.step for info in checkpoints)
        scored = sorted((self.scores[step], step) for step in steps if self.scores.get(step) is not None)
        kept = {*steps[-self._last :], *(step for _, step in scored[max(0, len(scored) - self._best) :])}
        return [info.step in kept for info in checkpoints]


def _score(folder: Path, best_by: str) -> float | None:
    try:
        record = saved_steps.read_record(folder)
    except saved_steps.Unreadable:
        return None
    return record["score"] if record.get("score_of") == best_by else None


def _items(state: TrainState) -> saved_steps.Items:
    return {
        "params": _flat(state.trainable) | _flat(state.frozen),
        "training": _flat(_rest(state)),
    }


def _rest(state: TrainState) -> dict[str, Any]:
    """What a state has beside the parameters."""
    return {"opt_state": state.opt_state, "step": state.step, "average": state.average}


def _unflatten(template, flat: dict):
    return jax.tree.unflatten(jax.tree.structure(template), [flat[name] for name in _flat(template)])


def about_run(config, questions: Mapping[str, str], reference=None) -> dict:
    """What each step of a run says of it: its settings, what identifies its questions, and a hash of the reference policy,
    without which the steps to come would differ.

    Args:
        reference: a tree of arrays, if the run has one.
    """
    start = None
    if reference is not None:
        forms = saved_steps.describe({"reference": _flat(reference)})
        start = hashlib.sha256(json.dumps(forms, sort_keys=True).encode()).hexdigest()
    return {"settings": to_dict(config), "questions": dict(questions), "start": start}


def saved_dtype(directory: Path, step: int | None = None) -> str:
    """The type that most parameters of a run's last readable step have, or of the given one."""
    folder = Path(directory) / "checkpoints"
    for number in [step] if step is not None else reversed(saved_steps.numbers(folder)):
        try:
            forms = saved_steps.read_record(folder / str(number))["arrays"]["params"].values()
        except saved_steps.Unreadable:
            continue  # which the loading will tell
        names = [form["dtype"] for form in forms]
        return max(set(names), key=names.count)
    raise UserError(f"{folder}: no complete checkpoint")


def load_run_model(
    directory: Path, compute: ComputeConfig, mesh: Mesh | None = None, step: int | None = None
) -> VisionLanguageModel:
    """The model of a run directory, from its last readable checkpoint or the given one; adapters are merged into their layers.

    Raises:
        UserError: no such step, or none that can be read.
    """
    lora = _run_lora(Path(directory) / "run.yaml")
    model = abstract_model(read_config(Path(directory)), compute)
    model = nnx.eval_shape(lambda model: add_lora(model, lora, nnx.Rngs(0)), model)
    params = nnx.state(model, nnx.Param)
    wanted = _flat(params)
    if mesh is not None:
        shardings = _flat(param_shardings(params, mesh))
        wanted = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[k]) for k, x in wanted.items()}
    found = saved_steps.newest(Path(directory).absolute() / "checkpoints", {"params": wanted}, step)
    nnx.update(model, _unflatten(params, found.items["params"]))
    return merge_lora(model)


def _run_lora(settings: Path) -> LoRAConfig:
    """The adapters that a run's settings ask for."""
    data = load_yaml(settings) if settings.exists() else {}
    return from_dict(LoRAConfig, data.get("lora", {}), f"{settings}: lora")
