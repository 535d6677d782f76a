"""The config.json of a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoomearth_jax.configs.io import read_json
from zoomearth_jax.errors import UserError


def raw_config(directory: Path) -> tuple[dict[str, Any], str]:
    """The data of config.json, and the file's name for messages.

    Raises:
        UserError: no config.json, or a broken one.
    """
    directory = Path(directory)
    file = directory / "config.json"
    if not file.exists():
        snapshots = sorted(directory.glob("snapshots/*/config.json"))
        place = f"its snapshot {snapshots[-1].parent}" if snapshots else "an HF checkpoint directory"
        raise UserError(f"{directory}: no config.json; give {place}")
    return read_json(file), str(file)
