"""What every training run does: its start, its data on the way to the device, and the check on what comes out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from zoomearth_jax.checkpoint import write_run_header
from zoomearth_jax.configs.io import read_yaml, to_dict, write_yaml
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.data_pipeline.loader import Loader
from zoomearth_jax.data_pipeline.sources import ENDLESS, open_sources
from zoomearth_jax.errors import UserError
from zoomearth_jax.model_io import count_parameters
from zoomearth_jax.models.sharding import batch_stretch, make_mesh, num_slices
from zoomearth_jax.saved_steps import together
from zoomearth_jax.tpu_flags import set_tpu_flags

FREE_SETTINGS = (
    "resume",
    "overwrite",
    "out",
    "workers",
    "mesh",
    "log",
    "panel_every",
    "profile",
    "checkpoint_every",
    "keep",
    "keep_best",
)  # may change on resuming
CLUSTER = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # environment variables with the number of processes
KEPT_BYTES = 2**28  # of rows in memory: 3,500 of the nano model, 170 with 512 px views


@contextmanager
def on_mesh(config: MeshConfig, model: str | Path, processes: bool = True) -> Iterator[Mesh]:
    """Joins the other processes, if there are any, and sets the mesh of all devices; yields it.

    Args:
        model: as `load_model` takes it; its size decides what `config` leaves open.
        processes: whether the verb works in several.

    Raises:
        UserError: sizes that don't fit the devices, or no such model.
    """
    if config.coordinator and not processes:
        raise UserError("this verb runs in one process; leave mesh.coordinator out")
    set_tpu_flags()
    joined = processes and _join(config)
    try:
        devices = jax.devices()
        mesh = make_mesh(config.shape(len(devices), count_parameters(model), num_slices(devices)), devices)
        with jax.set_mesh(mesh):
            yield mesh
    finally:
        if joined:
            jax.distributed.shutdown()


def _join(config: MeshConfig) -> bool:
    """Starts `jax.distributed` where settings or surroundings ask for it; whether this call did."""
    if jax.distributed.is_initialized():
        return False
    if config.coordinator not in ("", "auto"):
        jax.distributed.initialize(config.coordinator, config.processes, config.process)
        return True
    cloud_tpu = find_spec("libtpu") is not None and (Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists())
    if config.coordinator == "auto" or cloud_tpu or any(int(os.environ.get(name) or 1) > 1 for name in CLUSTER):
        jax.distributed.initialize()
        return True
    return False


def open_run(config, model, rows, loader: Loader) -> None:
    """Prepares `config.out`: header files, the settings in run.yaml, and what identifies the questions in data.json.

    Raises:
        UserError: a run is there and neither `resume` nor `overwrite` is set, or nothing is there to resume, or what is
            there had other settings or questions.
    """
    out = Path(config.out)
    settings = out / "run.yaml"
    exists = settings.exists()
    if config.resume:
        if not exists:
            raise UserError(f"{out}: no run to resume; leave --resume out to start one")
        before, now = to_dict(read_yaml(settings, type(config))), to_dict(config)
        changed = [key for key in now if before[key] != now[key] and key not in FREE_SETTINGS]
        if changed:
            key = changed[0]
            raise UserError(
                f"{out}: the run to resume has {key}={before[key]!r}, not {now[key]!r}; use its own settings"
            )
        _check_questions(out / "data.json", loader.digests)
        return
    if exists and not config.overwrite:
        raise UserError(f"{out}: holds a run; pass --resume to go on, --overwrite to start anew, or another --out")
    together("looked at the run")  # before one of the processes writes
    if jax.process_index() == 0:
        for old in ("checkpoints", "panels", "profile", "replay") if exists else ():
            shutil.rmtree(out / old, ignore_errors=True)
        write_run_header(out, model, rows)
        (out / "data.json").write_text(json.dumps(loader.digests, indent=2) + "\n", encoding="utf-8")
        write_yaml(settings, config)
    together("wrote the run's settings")


def _check_questions(file: Path, digests: dict[str, str]) -> None:
    """Questions that changed would silently change what the steps to come train on."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: can't tell whether the questions are those of the run ({error})") from None
    changed = [name for name in digests if before.get(name) != digests[name]]
    if changed:
        raise UserError(f"{file}: the questions of {changed[0]} have changed since the run began; start a new run")


def open_loader(
    config,
    split: str,
    make: Callable,
    batch_size: int,
    questions: int = ENDLESS,
    mesh: Mesh | None = None,
    minibatches: int = 1,
    rollout_batches: int = 1,
) -> Loader:
    """The loader of a training run's settings `data`, `images`, `mix`, `global_share`, `seed` and `workers`, for this process.

    Args:
        minibatches: batches of one step each that this one is cut into.
        rollout_batches: parts that it is played in.

    Raises:
        UserError: a batch that doesn't divide over the mesh, the minibatches and their microbatches.
    """
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (shards * config.accumulate * minibatches):
        cut = f" in {minibatches} minibatches" if minibatches > 1 else ""
        cut += f" in {config.accumulate} microbatches" if config.accumulate > 1 else ""
        raise UserError(
            f"a step of {batch_size} questions doesn't divide over {shards} devices{cut} (data x fsdp); "
            "take a multiple, or another mesh"
        )
    if batch_size % (shards * rollout_batches):
        raise UserError(
            f"a step of {batch_size} questions doesn't divide over {shards} devices in {rollout_batches} rollout batches"
        )
    scenes = {"seed": config.seed, "global_share": config.global_share, "questions": questions}
    sources = open_sources(config.data, split, images=config.images, **scenes)
    return Loader(
        sources,
        make,
        batch_size=batch_size,
        seed=config.seed,
        mix=config.mix,
        workers=config.workers,
        keep_bytes=KEPT_BYTES,
        process=batch_stretch(mesh),
    )


def look_ahead(batches: Iterator, prepare: Callable[[Any], Any]) -> Iterator:
    """Yields prepare(batch) of each batch; that of the next runs in a thread while the caller works on the last.

    The step in hand then covers the next one's layout and transfer to the device.
    """
    ended = object()

    def following():
        batch = next(batches, ended)
        return ended if batch is ended else prepare(batch)

    with ThreadPoolExecutor(1, thread_name_prefix="look-ahead") as thread:
        ready = thread.submit(following)
        while (batch := ready.result()) is not ended:
            ready = thread.submit(following)
            yield batch


def of_all_processes(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One array [all rows] of each array [this process's rows]; all processes must call it at the same time."""
    if jax.process_count() == 1:
        return dict(rows)
    return {name: x.reshape(-1) for name, x in multihost_utils.process_allgather(dict(rows)).items()}
