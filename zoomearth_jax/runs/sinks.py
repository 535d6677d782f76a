"""Where metrics go beside metrics.jsonl: TensorBoard and Weights & Biases, both optional packages."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from zoomearth_jax.errors import UserError

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # sink, which is also the name of our extra -> package


class Sink(Protocol):
    """What takes a run's metrics."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes the finite metrics of a step."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """Takes a PNG file."""

    def close(self) -> None:
        """Writes what is still pending."""


class TensorBoard:
    """Event files in `directory`/tensorboard; `tensorboard --logdir` shows them."""

    def __init__(self, directory: Path, start: int):
        """A resumed run takes back what was logged after step `start`; a new one what an older run left."""
        from tensorboardX import SummaryWriter

        folder = Path(directory) / "tensorboard"
        if not start:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        suffix = f".{start}"  # files of the same second would share a name
        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None, filename_suffix=suffix)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases. Project, entity and mode come from its environment variables (WANDB_MODE=offline)."""

    def __init__(self, directory: Path, start: int, settings: Mapping[str, Any]):
        """A resumed run goes on under the same id, kept in `directory`/wandb_id; a new one takes a new id."""
        import wandb

        directory = Path(directory)
        kept = directory / "wandb_id"
        identity = kept.read_text(encoding="utf-8").strip() if start and kept.exists() else uuid.uuid4().hex[:8]
        mode: Any = os.environ.get("WANDB_MODE")  # wandb itself refuses what it doesn't know
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "zoomearth_jax"),
                name=directory.name,
                id=identity,
                resume="allow",
                mode=mode,
                dir=str(directory),
                config=dict(settings),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(f"log: wandb can't start ({reason}); WANDB_MODE=offline goes without it") from None
        kept.write_text(identity + "\n", encoding="utf-8")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


def check_sinks(names: Sequence[str]) -> None:
    """UserError for a sink that there isn't, whose package is missing, or that lacks a login."""
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"log: unknown sink {name!r}; known: {', '.join(PACKAGES)}")
        if find_spec(PACKAGES[name]) is None:
            raise UserError(f"log: {name} needs the package {PACKAGES[name]}; pip install 'zoomearth_jax[{name}]'")
    if "wandb" in names and os.environ.get("WANDB_MODE", "online") == "online":
        import wandb

        if not wandb.login(prompt=False, verify=False):
            raise UserError(
                "log: wandb has no API key; set WANDB_API_KEY, run `wandb login`, or set WANDB_MODE=offline"
            )


def open_sinks(names: Sequence[str], directory: Path, start: int, settings: Mapping[str, Any]) -> list[Sink]:
    """The sinks of a run.

    Args:
        start: the last step already done; 0 for a new run.
        settings: the run's settings, for sinks that show them.
    """
    make: dict[str, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoard(directory, start),
        "wandb": lambda: WandB(directory, start, settings),
    }
    return [make[name]() for name in dict.fromkeys(names)]
