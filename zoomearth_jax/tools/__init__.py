"""Tools: what a turn's text can ask for, and the picture that comes back. A new tool is a file here and a line in TOOLS."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.tools.tool import Tool
from zoomearth_jax.tools.zoom import Masked, Oracle, Zoom

if TYPE_CHECKING:  # it brings tokenizers, which `zoomearth tool` doesn't need
    from zoomearth_jax.data_pipeline.rows.builder import RowBuilder

TOOLS: dict[str, Callable[[RowBuilder], Tool]] = {"zoom": Zoom}


def make_tool(name: str, rows: RowBuilder) -> Tool:
    """The tool of that name.

    Raises:
        UserError: nobody registered one.
    """
    if name not in TOOLS:
        raise UserError(f"no tool {name!r}; there is {', '.join(TOOLS)}")
    return TOOLS[name](rows)


def chosen_tool(config: RolloutConfig, rows: RowBuilder) -> Tool:
    """The tool that a rollout's settings ask for, with its wrappers.

    Raises:
        UserError: nobody registered it.
    """
    tool = make_tool(config.tool, rows)
    if config.crop_gate == "oracle":
        tool = Oracle(tool, rows)
    return Masked(tool) if config.mask_crop else tool
