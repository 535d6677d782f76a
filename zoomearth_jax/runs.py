"""What every training run does: its start, its data on the way to the device, and the check on what comes out."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from zoomearth_jax.checkpoint import write_run_header
from zoomearth_jax.configs.io import read_yaml, to_dict, write_yaml
from zoomearth_jax.data_pipeline.loader import Loader
from zoomearth_jax.data_pipeline.sources import ENDLESS, open_sources
from zoomearth_jax.errors import UserError

KEPT_BYTES = 2**28  # of rows in memory: 3,500 of the nano model, 170 with 512 px views


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
        changed = [
            key for key in now if before[key] != now[key] and key not in ("resume", "overwrite", "out", "workers")
        ]
        if changed:
            key = changed[0]
            raise UserError(
                f"{out}: the run to resume has {key}={before[key]!r}, not {now[key]!r}; use its own settings"
            )
        _check_questions(out / "data.json", loader.digests)
        return
    if exists and not config.overwrite:
        raise UserError(f"{out}: holds a run; pass --resume to go on, --overwrite to start anew, or another --out")
    if exists:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    write_run_header(out, model, rows)
    (out / "data.json").write_text(json.dumps(loader.digests, indent=2) + "\n", encoding="utf-8")
    write_yaml(settings, config)


def _check_questions(file: Path, digests: dict[str, str]) -> None:
    """Questions that changed would silently change what the steps to come train on."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: can't tell whether the questions are those of the run ({error})") from None
    changed = [name for name in digests if before.get(name) != digests[name]]
    if changed:
        raise UserError(f"{file}: the questions of {changed[0]} have changed since the run began; start a new run")


def open_loader(config, split: str, make: Callable, batch_size: int, questions: int = ENDLESS) -> Loader:
    """The loader of a training run's settings `data`, `mix`, `global_share`, `seed` and `workers`, for this host."""
    sources = open_sources(config.data, split, seed=config.seed, global_share=config.global_share, questions=questions)
    return Loader(
        sources,
        make,
        batch_size=batch_size,
        seed=config.seed,
        mix=config.mix,
        workers=config.workers,
        keep_bytes=KEPT_BYTES,
        process=(jax.process_index(), jax.process_count()),
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


def finite(metrics: Mapping, step: int) -> dict[str, float]:
    """The metrics as floats; stops the run where the loss is not finite."""
    values = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(values["loss"]):
        raise UserError(f"step {step}: the loss is {values['loss']}; lower the learning rate")
    return values
