"""Directories that are complete or visibly not there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def staged_model(directory, owner: bool = True) -> Iterator[Path]:
    """Writes a model directory so that an interruption leaves nothing that looks complete.

    Yields a folder inside `directory` to write to. At the end its files move up: config.json, without which nothing is a
    model directory, goes first of the old ones and comes last of the new ones; old weights go before new ones come. Other
    files stay. After an exception or a kill an older model is still whole, or config.json is missing.

    Args:
        directory: made if it isn't there.
        owner: whether this process writes; of several, one does, and the others only pass through.
    """
    directory = Path(directory)
    staging = directory / ".partial"
    if not owner:
        yield staging
        return
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        (directory / "config.json").unlink(missing_ok=True)
        for old in [*directory.glob("*.safetensors"), *directory.glob("*.safetensors.index.json")]:
            old.unlink()
        for file in sorted(staging.iterdir(), key=lambda f: f.name == "config.json"):
            if file.is_dir():
                shutil.rmtree(directory / file.name, ignore_errors=True)
            file.replace(directory / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
