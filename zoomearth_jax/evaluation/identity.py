"""What decides a prediction, as a hash: records of the same hash may stand in one file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from zoomearth_jax.files import SIDE_FILES
from zoomearth_jax.runs.models import is_run
from zoomearth_jax.runs.saved_steps import Unreadable, numbers, read_record

_SAMPLES, _SAMPLE_BYTES = 64, 4096  # that stand for a file of weights


def config_hash(**settings: Any) -> str:
    """The hash of settings, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_identity(directory: Path) -> dict[str, Any]:
    """What tells a model from others wherever its folder lies: hashes of the files that say how text and pictures become its
    inputs; and of its weights size and a hash of samples of each file, or of a run its step with the hashes of all arrays."""
    directory = Path(directory)
    patterns = ("config.json", *SIDE_FILES)
    files = sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})
    identity: dict[str, Any] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    if not is_run(directory):
        return identity | {file.name: sampled(file) for file in sorted(directory.glob("*.safetensors"))}
    step = numbers(directory / "checkpoints")[-1:]
    try:
        arrays = [read_record(directory / "checkpoints" / str(number))["arrays"] for number in step]
    except Unreadable:  # then an earlier step is loaded, with a warning
        arrays = []
    return identity | {"step": step, "arrays": config_hash(arrays=arrays)}


def sampled(file: Path) -> tuple[int, str]:
    """The size of a file, and a hash of samples of it."""
    size, samples = file.stat().st_size, hashlib.sha256()
    with open(file, "rb") as opened:
        for place in range(_SAMPLES):
            opened.seek(max(size - _SAMPLE_BYTES, 0) * place // (_SAMPLES - 1))
            samples.update(opened.read(_SAMPLE_BYTES))
    return size, samples.hexdigest()
