"""The registry of image tools: those of the package, those of installed packages, and the user's own by path or address."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterable

from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.tools.callable_tool import from_callable, load_pipeline
from zoomearth_jax.tools.http_tool import from_address
from zoomearth_jax.tools.image_tool import ImageTool
from zoomearth_jax.tools.user_code import imported, said

GROUP = "zoomearth_jax.tools"  # of entry points
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


# Each is imported when it is first asked for: they need libraries that the rest doesn't.
def _zoom(settings: ToolsConfig) -> ImageTool:
    from zoomearth_jax.tools.enlarging import zoom_tool

    return zoom_tool(settings)


def _denoise(_: ToolsConfig) -> ImageTool:
    from zoomearth_jax.tools.denoise import DENOISE

    return DENOISE


def _cloud_removal(_: ToolsConfig) -> ImageTool:
    from zoomearth_jax.tools.cloud_removal import CLOUD_REMOVAL

    return CLOUD_REMOVAL


def _segmentation(settings: ToolsConfig) -> ImageTool:
    from zoomearth_jax.tools.segmentation import segmentation_tool

    return segmentation_tool(settings)


def _edit(settings: ToolsConfig) -> ImageTool:
    from zoomearth_jax.tools.editing import edit_tool

    return edit_tool(settings)


IMAGE_TOOLS: dict[str, Callable[[ToolsConfig], ImageTool]] = {
    "zoom": _zoom,
    "denoise": _denoise,
    "cloud_removal": _cloud_removal,
    "segmentation": _segmentation,
    "edit": _edit,
}


def known_tools() -> list[str]:
    """The names of the package's tools and of those that installed packages bring."""
    return [*IMAGE_TOOLS, *(name for name in _entry_points() if name not in IMAGE_TOOLS)]


def find_tool(name: str, settings: ToolsConfig = ToolsConfig()) -> ImageTool:
    """A tool by what a user writes.

    Args:
        name: a known name; MODULE:NAME, a function or an `ImageTool` of the user's; an address http://… or https://…; or
            hf:TASK=MODEL, a pipeline of Hugging Face.

    Raises:
        UserError: there is none, it can't be loaded, or a library is missing.
    """
    try:
        return _usable(_found(name, settings), name)
    except ImportError as error:
        missing = error.name or str(error)
        raise UserError(f"tool {name}: needs {missing}; pip install 'zoomearth_jax[tools]' brings it") from None


def _usable(tool: ImageTool, given: str) -> ImageTool:
    """The tool, where a policy can be offered it."""
    if fault := _schema_fault(tool):
        raise UserError(f"tool {given}: its parameters are no JSON schema ({fault})")
    if not _NAME.fullmatch(tool.name):
        raise UserError(f"tool {given}: its name {tool.name!r} must be of letters, digits and . _ -")
    return tool


def _schema_fault(tool: ImageTool) -> str:
    """What is wrong with the schema of a tool's parameters; empty if nothing is."""
    import jsonschema

    from zoomearth_jax.tools.calls import schema

    try:
        jsonschema.Draft202012Validator.check_schema(schema(tool)["function"]["parameters"])
    except jsonschema.SchemaError as error:
        return error.message[:100]
    return ""


def _found(name: str, settings: ToolsConfig) -> ImageTool:
    if name in IMAGE_TOOLS:
        return IMAGE_TOOLS[name](settings)
    if name.startswith(("http://", "https://")):
        return from_address(name, settings.timeout_s)
    if name.startswith("hf:"):
        return load_pipeline(name)
    if ":" in name:
        return _as_tool(imported(name, "tool"))
    points = _entry_points()
    if name not in points:
        raise UserError(f"no tool {name!r}; {suggestion(name, known_tools())}")
    try:
        return _as_tool(points[name].load(), name)
    except Exception as error:  # whatever the other package does
        raise UserError(f"tool {name}: loading {points[name].value} failed ({said(error)})") from error


def _as_tool(given, name: str = "") -> ImageTool:
    return given if isinstance(given, ImageTool) else from_callable(given, name)


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def find_tools(given: Iterable[str | ImageTool], settings: ToolsConfig = ToolsConfig()) -> dict[str, ImageTool]:
    """Tools by their own names; errors as of `find_tool`.

    Args:
        given: what `find_tool` takes, or tools as they are.

    Raises:
        UserError: two have the same name.
    """
    tools: dict[str, ImageTool] = {}
    for one in given:
        tool = _usable(one, one.name) if isinstance(one, ImageTool) else find_tool(one, settings)
        if tool.name in tools:
            raise UserError(f"tools: there are two of the name {tool.name!r}; name each once")
        tools[tool.name] = tool
    return tools
