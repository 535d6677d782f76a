"""How crops are shown in an evaluation: the names that `--crops` takes."""

from __future__ import annotations

from collections.abc import Callable

from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.tools.tool import Tool
from zoomearth_jax.tools.zoom import Masked

# name -> what it makes of the engine's tool
CROPS: dict[str, Callable[[Tool, RowBuilder], Tool]] = {
    "shown": lambda tool, rows: tool,
    "masked": lambda tool, rows: Masked(tool),
}
