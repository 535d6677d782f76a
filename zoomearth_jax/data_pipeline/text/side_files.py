"""The files beside a model's weights that HF's AutoTokenizer and AutoProcessor read, in forms that transformers 4.49 to 5.x
read alike: those of the published Qwen2.5-VL checkpoints.

transformers 5 itself writes names that 4.x doesn't know: `TokenizersBackend`, a list of `extra_special_tokens`, the image
settings inside `processor_config.json`, areas only as `size`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoomearth_jax.configs.episode import RowLayout, read_episode
from zoomearth_jax.configs.io import read_json
from zoomearth_jax.data_pipeline.text.processor import FIXED, ImageConfig

IMAGES, VIDEOS, PROCESSOR = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"
TOKENIZER = "tokenizer_config.json"
_INSIDE = {"image_processor": IMAGES, "video_processor": VIDEOS}  # in processor_config.json of transformers 5
_SIDES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}  # of `size`: areas, in spite of their names


def read_processors(directory: Path) -> dict[str, dict]:
    """The processor's settings in a model directory, by the file that holds them in the published form.

    Raises:
        UserError: a broken file.
    """
    found = {name: read_json(Path(directory) / name, {}) for name in (IMAGES, VIDEOS, PROCESSOR)}
    for key, name in _INSIDE.items():  # which transformers 5 prefers
        inside = found[PROCESSOR].pop(key, None)
        found[name] = inside if isinstance(inside, dict) else found[name]
    return {name: _published(name, settings) for name, settings in found.items() if settings}


def _published(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the image processor's class and areas named as published."""
    if name != IMAGES:
        return dict(settings)
    size = settings["size"] if isinstance(settings.get("size"), dict) else {}
    areas = {ours: size[edge] for ours, edge in _SIDES.items() if edge in size}
    names = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    return areas | {key: value for key, value in settings.items() if key not in areas or value is not None} | names


def _images(kept: Mapping[str, Any], limits: Mapping[str, int]) -> dict[str, Any]:
    """Image settings with what the model does to every picture; the rest as kept."""
    settings = dataclasses.asdict(ImageConfig()) | {"image_mean": None, "image_std": None} | dict(kept)
    settings = {key: FIXED.get(key, value) for key, value in settings.items() if key != "size" or not limits}
    return _published(IMAGES, settings | dict(limits))


def view_images(layout: RowLayout, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by which HF's processor gives a square image the size of our overview.

    Qwen's processor limits the area, we limit the longer side; so an oblong image gets more tokens from it than from us, but
    never more than a square one. max_pixels is less than one token over the largest view, because the processor rounds down, and
    min_pixels a px less than its least view, because it rounds up what its square roots make of small images.

    Args:
        kept: other settings of preprocessor_config.json, from the checkpoint that training began with.
    """
    token = layout.merged_px**2
    return _images(kept, {"min_pixels": 4 * token - 1, "max_pixels": (layout.view_tokens + 1) * token - 1})


def complete(directory: Path) -> None:
    """Brings a model directory's files to the forms that transformers 4.x and 5.x read; files that are in them stay as they are.

    A directory without image settings gets those of its episode.json, or else the published ones.

    Raises:
        UserError: a broken file.
    """
    directory = Path(directory)
    processors = read_processors(directory)
    if IMAGES not in processors:
        episode = read_episode(directory)
        layout = episode and episode.layout(ImageConfig().merged_px)
        processors[IMAGES] = view_images(layout, {}) if layout else _images({}, {})
    for name, settings in processors.items():
        _write(directory / name, settings)
    if PROCESSOR not in processors:
        (directory / PROCESSOR).unlink(missing_ok=True)
    if settings := read_json(directory / TOKENIZER, {}):
        _write(directory / TOKENIZER, _published_tokenizer(settings))


def _published_tokenizer(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without what only transformers 5 knows."""
    settings = {key: value for key, value in settings.items() if key not in ("backend", "is_local", "local_files_only")}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def _write(file: Path, settings: Mapping[str, Any]) -> None:
    if read_json(file, {}) != settings:
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
