"""`zoomearth tool NAME IMAGE --box X1 Y1 X2 Y2`: runs one image tool on a region of an image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, clamped
from zoomearth_jax.data_pipeline.images.image_folder import open_image
from zoomearth_jax.data_pipeline.images.sources import ImageSource, whole
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import check_writable, write_file
from zoomearth_jax.tools.image_tool import ImageTool, ToolFailure, ToolResult
from zoomearth_jax.tools.pasting import pasted, provenance, whole_image
from zoomearth_jax.tools.registry import find_tool, known_tools
from zoomearth_jax.tools.running import Region, read_region, run_tool, window_of
from zoomearth_jax.verbs.places import png_place


@dataclasses.dataclass(frozen=True)
class ToolConfig:
    """An image tool, and the region that it works on.

    Attributes:
        name: a tool's name; MODULE:NAME, a function of your own; an address http://...; or hf:TASK=MODEL. Without it all tools are
            listed.
        image: an image file, or an image of a tile store as STORE/NAME.
        box: x1 y1 x2 y2 in px of the image; the whole image without it.
        out: PNG file for the result: its picture, or its mask in black and white. Where it comes from goes into a JSON file beside
            it, and what is made up into NAME.made_up.png.
        paste: PNG file for the whole image with the result in place of the region.
        param: settings of the tool, each as NAME=VALUE; several after one flag, or the flag several times.
        label: what the region shows, for tools that want to know.
        mask: image file of the same size in which the px that aren't black are marked: thick cloud, or what is edited.
        other: image files of the same size that show the place at other dates, to fill thick cloud from.
        images: how image files become 8-bit RGB.
        tool: time limits, and what tools use that isn't part of the package.
        json: print JSON.
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    image: Annotated[Path | None, tyro.conf.Positional] = None
    box: tuple[float, float, float, float] | None = None
    out: Path | None = None
    paste: Path | None = None
    param: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    label: str = ""
    mask: Path | None = None
    other: tuple[Path, ...] = ()
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    tool: ToolsConfig = ToolsConfig()
    json: bool = False


def tool(config: ToolConfig) -> dict | list:
    """Runs the tool, writes what came of it, prints it and returns it."""
    if not config.name:
        return _list_tools(config)
    if config.image is None:
        raise UserError(f"tool {config.name}: name an image too")
    out, paste = _place("--out", config.out, config.image), _place("--paste", config.paste, config.image)
    if config.tool.super_resolution is not None:
        from zoomearth_jax.hardware.tpu_flags import skip_missing_tpus

        skip_missing_tpus()
    chosen, parameters = find_tool(config.name, config.tool), _parameters(config.param)
    _check(chosen, parameters)
    image = open_image(config.image, config.images)
    region, result = _run(config, chosen, parameters, image)
    whole_of_it = None if paste is None else pasted(whole_image(image), region, result, config.tool.feather)
    record = {"image": str(config.image), **provenance(chosen, region, result, parameters), "files": {}}
    if out is not None:
        _write_result(out, result, record)
    if paste is not None and whole_of_it is not None:
        _write(paste, whole_of_it)
        record["files"]["paste"] = str(paste)
    for place in filter(None, (out, paste)):
        write_file(place.with_suffix(".json"), json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(record, indent=2, ensure_ascii=False) if config.json else _text(record))
    return record


def _place(flag: str, path: Path | None, image: Path) -> Path | None:
    """Where a PNG file goes, with a JSON file beside it; see `png_place`."""
    if path is not None:
        path = png_place(flag, path, image)
        check_writable(path.with_suffix(".json"))
    return path


def _run(
    config: ToolConfig, chosen: ImageTool, parameters: dict[str, Any], image: ImageSource
) -> tuple[Region, ToolResult]:
    """What the tool is handed, and what it gives."""
    box = _box(config.box, image)
    region = read_region(image, window_of(chosen, box), box, config.tool.max_side)
    mask = None if config.mask is None else np.asarray(_beside(config.mask, config, image, region).max(-1) > 0)
    others = [_beside(path, config, image, region) for path in config.other]
    return region, run_tool(chosen, region, config.tool.timeout_s, config.label, parameters, mask, others)


def _list_tools(config: ToolConfig) -> list:
    """Prints all known tools with their schemas."""
    from zoomearth_jax.tools.calls import schema

    tools = [find_tool(name, config.tool) for name in known_tools()]
    if config.json:
        print(json.dumps([schema(one) for one in tools], indent=2, ensure_ascii=False))
    else:
        for one in tools:
            print(f"{one.name:14} {one.description}")
            for name, kind in (one.parameters or {}).items():
                print(f"{'':14}   {name}: {kind.get('description', kind.get('type', ''))}")
    return [schema(one) for one in tools]


def _parameters(given: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    """Settings by name; a value is JSON where it can be, else a text."""
    parameters = {}
    for one in (part for parts in given for part in parts):
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise UserError(f"--param {one}: write it as NAME=VALUE")
        try:
            parameters[name] = json.loads(value)
        except (ValueError, RecursionError):
            parameters[name] = value
    return parameters


def _check(chosen: ImageTool, parameters: dict[str, Any]) -> None:
    """Compares the settings with the tool's schema.

    Raises:
        UserError: they don't fit.
    """
    from zoomearth_jax.tools.calls import mismatch

    if fault := mismatch(chosen, parameters, boxed=False):
        raise UserError(f"tool {chosen.name}: --param: {fault}")


def _box(corners: tuple[float, float, float, float] | None, image: ImageSource) -> Box:
    if corners is None:
        return whole(image)
    x1, y1, x2, y2 = corners
    box = clamped(Box(x1, y1, x2, y2, image.frame)) if x1 < x2 and y1 < y2 else None
    if box is None:
        size = f"{image.frame.width} x {image.frame.height} px"
        raise UserError(f"--box {x1:g} {y1:g} {x2:g} {y2:g}: no part of the image ({size}); give x1 < x2 and y1 < y2")
    return box


def _beside(path: Path, config: ToolConfig, image: ImageSource, region: Region) -> np.ndarray:
    """The same region of another image file of the same size."""
    other = open_image(path, config.images)
    if other.frame != image.frame:
        size, own = (f"{frame.width} x {frame.height}" for frame in (other.frame, image.frame))
        raise UserError(f"{path}: {size} px; it must be of the image's size, {own}")
    height, width = region.pixels.shape[:2]
    return other.window(region.window, Frame(width, height))


def _write_result(out: Path, result: ToolResult, record: dict) -> None:
    if result.image is not None:
        _write(out, result.image)
    elif result.mask is not None:
        _write(out, result.mask.astype(np.uint8) * 255)
    else:
        raise ToolFailure(f"tool {record['tool']}: gave no picture and no mask, nothing can be written to {out}")
    record["files"]["out"] = str(out)
    if result.made_up is not None:
        marked = out.with_suffix(".made_up.png")
        _write(marked, result.made_up.astype(np.uint8) * 255)
        record["files"]["made_up"] = str(marked)


def _write(path: Path, pixels: np.ndarray) -> None:
    write_file(path, lambda place: Image.fromarray(pixels).save(place, format="PNG"))


def _text(record: dict) -> str:
    lines = [f"tool    {record['tool']}", f"window  {record['window']} px of the original"]
    if record["scale"] != 1:
        lines.append(f"scale   {record['scale']:.3g} px of the region per px of the original")
    lines.append(f"result  {record['text'] or 'no text'}")
    lines += [f"box     {box} px of the original" for box in record["boxes"]]
    if record["made_up_px"]:
        lines.append(f"note    {record['made_up_px']} px of the result are made up")
    return "\n".join([*lines, *(f"wrote   {path}" for path in record["files"].values())])
