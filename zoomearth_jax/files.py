"""Directories that are complete or visibly not there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from zoomearth_jax.errors import UserError

SIDE_FILES = (  # of a published checkpoint, that say how text and pictures become its inputs
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "*processor_config.json",
    "generation_config.json",
    "episode.json",
)


@contextlib.contextmanager
def staged_model(directory, owner: bool = True) -> Iterator[Path]:
    """Writes a model directory so that an interruption leaves nothing that looks complete.

    Yields a folder inside `directory` to write to. At the end its files move up: config.json, without which nothing is a
    model directory, goes first of the old ones and comes last of the new ones; old weights and
    SIDE_FILES go before new ones come. Other files stay. After an exception or a kill an older model is still whole, or
    config.json is missing; a folder that was made for it and is empty goes again.

    Args:
        directory: made if it isn't there.
        owner: whether this process writes; of several, one does, and the others only pass through.

    Raises:
        UserError: the directory can't be made or written.
    """
    directory = Path(directory)
    staging = directory / ".partial"
    if not owner:
        yield staging
        return
    with _writing(directory):
        new = not directory.exists()
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    try:
        with _writing(directory):
            yield staging
            _move_up(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if new and not any(directory.iterdir()):
            directory.rmdir()


def _move_up(staging: Path, directory: Path) -> None:
    (directory / "config.json").unlink(missing_ok=True)
    for pattern in ("*.safetensors", "*.safetensors.index.json", *SIDE_FILES):
        for old in directory.glob(pattern):
            if not old.is_dir():
                old.unlink()
    for file in sorted(staging.iterdir(), key=lambda f: f.name == "config.json"):
        if file.is_dir():
            shutil.rmtree(directory / file.name, ignore_errors=True)
        file.replace(directory / file.name)


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Turns what the system says of a failed write into one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory}: can't be written ({str(error).splitlines()[0]}); give another directory"
        ) from None
