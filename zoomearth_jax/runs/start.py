"""What every training run does: its start, its data on the way to the device, and the check on what comes out."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from zoomearth_jax.configs.io import read_yaml, to_dict, write_yaml
from zoomearth_jax.configs.mesh import UNKNOWN_BYTES, MeshConfig
from zoomearth_jax.configs.training import TrainingConfig
from zoomearth_jax.data_pipeline.questions.mixture import ENDLESS, SceneQuestions, Source, open_sources
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.loader import Loader
from zoomearth_jax.data_pipeline.rows.workers import Place
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import Lock, move_up, write_file, writing
from zoomearth_jax.hardware.chips import chip
from zoomearth_jax.hardware.decoding import Decoding, lay_out
from zoomearth_jax.hardware.tpu_flags import set_tpu_flags
from zoomearth_jax.models.family import VisionLanguageModel
from zoomearth_jax.models.sharding import make_mesh, num_slices, process_share
from zoomearth_jax.runs.checkpoints import write_run_header
from zoomearth_jax.runs.models import count_parameters
from zoomearth_jax.runs.saved_steps import together
from zoomearth_jax.terminal.progress import say

FREE_SETTINGS = (
    "resume",
    "overwrite",
    "out",
    "workers",
    "strict",
    "mesh",
    "log",
    "panel_every",
    "dump",
    "dump_thumbnails",
    "profile",
    "checkpoint_every",
    "keep",
    "keep_best",
    "validate_every",
    "validate",
    "judge",
)  # may change on resuming
OLD = ("checkpoints", "panels", "profile", "replay", "judge", "rollouts")  # of a run that is started anew
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
        known = chip(devices[0].device_kind)
        sizes = config.shape(
            len(devices), count_parameters(model), num_slices(devices), known.hbm_bytes if known else UNKNOWN_BYTES
        )
        mesh = make_mesh(sizes, devices)
        with jax.set_mesh(mesh):
            yield mesh
    finally:
        if joined:
            jax.distributed.shutdown()


def lay_out_sampler(
    config: MeshConfig,
    mesh: Mesh,
    model: VisionLanguageModel,
    slots: int,
    prompts: int,
    group: int = 1,
    trains: bool = True,
    int8: bool = False,
) -> Mesh | None:
    """The mesh on which tokens are written, None for the trainer's own; says what is worth saying.

    Args:
        slots, prompts, group, trains, int8: see `Decoding`.

    Raises:
        UserError: a size that devices, questions or the model don't allow.
    """
    known = chip(mesh.devices.flat[0].device_kind)
    sampler, said = lay_out(Decoding(model, mesh, prompts, group, slots, known, trains, int8), config.sampler)
    for line in said if jax.process_index() == 0 else ():
        say(line)
    return sampler


def _join(config: MeshConfig) -> bool:
    """Starts `jax.distributed` where settings or surroundings ask for it; whether this call did. A run within another mesh, as
    those of `ablate`, is of the processes that are there."""
    if jax.distributed.is_initialized() or not jax.sharding.get_abstract_mesh().empty:
        return False
    if config.coordinator not in ("", "auto"):
        jax.distributed.initialize(config.coordinator, config.processes, config.process)
        return True
    cloud_tpu = find_spec("libtpu") is not None and (Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists())
    if config.coordinator == "auto" or cloud_tpu or any(int(os.environ.get(name) or 1) > 1 for name in CLUSTER):
        jax.distributed.initialize()
        return True
    return False


class Run:
    """The directory of a run, which one process group works on at a time. Use as a context manager.

    Until `begin` nothing is written: a start that fails, or is interrupted, leaves no folder, and a run that was to be
    overwritten as it was.
    """

    def __init__(self, config: TrainingConfig, model, rows, loader: Loader):
        """Takes the directory `config.out`, and compares what is there with the settings.

        Raises:
            UserError: another run is at work there; or a run is there and neither `resume` nor `overwrite` is set, or
                nothing is there to resume, or what is there had other settings or questions.
        """
        self._config, self._model, self._rows, self._digests = config, model, rows, loader.digests
        self.out, self._begun = Path(config.out), config.resume
        self._lock: Lock | None = None
        try:
            agreed(self._take)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._lock:
            self._lock.release()

    def _take(self, make: bool = False) -> None:
        """Takes the lock, where the directory is there or to be made, and looks at what it holds; only for the first process."""
        if not self._lock and (make or self.out.exists()):
            self._lock = Lock(
                self.out,
                f"{self.out}: another run is at work in this directory; wait for its end, or take another --out",
            )
        settings = self.out / "run.yaml"
        if self._config.resume:
            self._compare(settings)
        elif settings.exists() and not self._config.overwrite:
            raise UserError(
                f"{self.out}: holds a run; pass --resume to go on, --overwrite to start anew, or another --out"
            )

    def _compare(self, settings: Path) -> None:
        if not settings.exists():
            raise UserError(f"{self.out}: no run to resume; leave --resume out to start one")
        before, now = to_dict(read_yaml(settings, type(self._config))), to_dict(self._config)
        changed = [key for key in now if before[key] != now[key] and key not in FREE_SETTINGS]
        if changed:
            key = changed[0]
            raise UserError(
                f"{self.out}: the run to resume has {key}={before[key]!r}, not {now[key]!r}; use its own settings"
            )
        _check_questions(self.out / "data.json", self._digests)

    def begin(self) -> None:
        """Begins to write, once a step is done or before one is saved: clears what an older run left, and writes the header
        files, the settings in run.yaml, and what identifies the questions in data.json. All processes must call it."""
        if self._begun:
            return
        self._begun = True
        agreed(lambda: self._take(make=True))
        if jax.process_index() == 0:
            self._write()
        together("wrote the run's settings")

    def _write(self) -> None:
        with writing(self.out):
            staging = self.out / ".partial"
            shutil.rmtree(staging, ignore_errors=True)
            try:
                write_run_header(staging, self._model, self._rows)
                write_file(staging / "data.json", json.dumps(self._digests, indent=2) + "\n")
                write_yaml(staging / "run.yaml", self._config)
                for old in OLD if (self.out / "run.yaml").exists() else ():
                    shutil.rmtree(self.out / old, ignore_errors=True)
                move_up(staging, last="run.yaml")
            finally:
                shutil.rmtree(staging, ignore_errors=True)


def agreed(check: Callable[[], None]) -> None:
    """Returns what the first process's check gives; where it refuses, all processes do.

    Raises:
        UserError: what `check` raises.
    """
    why = ""
    if jax.process_index() == 0:
        try:
            check()
        except UserError as error:
            why = str(error)
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.array(bool(why))):
        why = why or "process 0 refuses to start"
    if why:
        raise UserError(why)


def _check_questions(file: Path, digests: dict[str, str]) -> None:
    """Refuses questions that changed: they would silently change what the steps to come train on."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: can't tell whether the questions are those of the run ({error})") from None
    changed = [name for name in digests if before.get(name) != digests[name]]
    if changed:
        raise UserError(f"{file}: the questions of {changed[0]} have changed since the run began; start a new run")


def open_loader(
    config: TrainingConfig,
    split: str,
    make: Callable,
    batch_size: int,
    questions: int = ENDLESS,
    mesh: Mesh | None = None,
    minibatches: int = 1,
    rollout_batches: int = 1,
    check: Callable[[Sequence[Question]], None] | None = None,
    looks: int = 2,
    refills: int = 0,
    passed_over: Callable[[Place, int], bool] | None = None,
) -> Loader:
    """The loader of a training run's settings `data`, `images`, `mix`, `global_share`, `seed`, `workers` and `strict`, for this
    process.

    Args:
        minibatches: batches of one step each that this one is cut into.
        rollout_batches: parts that it is played in.
        check: refuses questions that can't be made into rows; of folders, whose questions are all looked at before the run.
        looks: see `open_sources`.
        refills, passed_over: see `Loader`.

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
    scenes: dict[str, Any] = {
        "seed": config.seed,
        "global_share": config.global_share,
        "questions": questions,
        "looks": looks,
    }
    sources = open_sources(config.data, split, images=config.images, strict=config.strict, **scenes)
    for source in sources:
        if check and not isinstance(source.questions, SceneQuestions):
            check_source(check, source)
    return Loader(
        sources,
        make,
        batch_size=batch_size,
        seed=config.seed,
        mix=config.mix,
        workers=config.workers,
        keep_bytes=KEPT_BYTES,
        process=process_share(mesh),
        strict=config.strict,
        refills=refills,
        passed_over=passed_over,
    )


def check_source(check: Callable[[Sequence[Question]], None], source: Source) -> None:
    """Checks a source's questions; what is refused names the source."""
    try:
        check(source.questions)
    except UserError as error:
        raise UserError(f"{source.name}: {error}") from None


def broken_images(loader: Loader, step: int, mesh: Mesh) -> int:
    """Questions of a step, over all processes, whose images can't be read; all processes must call it at the same time."""
    own = loader.replaced(step)
    if jax.process_count() == 1:
        return own
    total = int(multihost_utils.process_allgather(np.array(own)).sum())
    return (
        total * process_share(mesh)[1] // jax.process_count()
    )  # processes that differ only along tensor count the same


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


class Peekable:
    """An iterator whose next item can be had before it is taken."""

    def __init__(self, items: Iterator):
        self._items, self._peeked = items, deque[Any]()

    def __iter__(self):
        return self

    def __next__(self):
        return self._peeked.popleft() if self._peeked else next(self._items)

    def peek(self) -> Any:
        """The next item, which stays; there must be one."""
        if not self._peeked:
            self._peeked.append(next(self._items))
        return self._peeked[0]


def of_all_processes(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Joins the rows of all processes: one array [all rows] for each array [this process's rows].

    All processes must call it at the same time.
    """
    if jax.process_count() == 1:
        return dict(rows)
    return {name: x.reshape(-1) for name, x in multihost_utils.process_allgather(dict(rows)).items()}
