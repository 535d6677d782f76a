"""Model directories: an HF checkpoint with its tokenizer, and `episode.json` beside it."""

from __future__ import annotations

import difflib
import json
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer

from zoomearth_jax.checkpoint import load_run_model, write_episode
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.io import from_dict
from zoomearth_jax.configs.presets import preset
from zoomearth_jax.data_pipeline.rows import RowBuilder
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.qwen2_5_vl import Qwen2_5_VL


class LoadedModel(NamedTuple):
    """A model and what turns questions into its rows."""

    model: Qwen2_5_VL
    rows: RowBuilder


SHIPPED = {"nano": "nano", "nano-grpo": "nano_grpo"}  # name -> folder in the package


def save_model(directory: Path, model: Qwen2_5_VL, rows: RowBuilder, dtype=None) -> None:
    """Writes config.json, model.safetensors (rounded to `dtype`), the tokenizer's files and episode.json."""
    directory = Path(directory)
    model.save_pretrained(directory, dtype=dtype)
    rows.tokenizer.save_pretrained(directory)
    write_episode(directory, rows.episode)


def load_rows(directory: Path) -> RowBuilder:
    """The tokenizer and the episode's layout of a model directory; a published checkpoint, which has no episode.json,
    gets the layout and the words of the preset qwen2_5_vl_3b."""
    file = Path(directory) / "episode.json"
    try:
        saved = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}: no readable tokenizer or episode.json ({str(error).splitlines()[0]})") from None
    episode = preset("qwen2_5_vl_3b")[1] if saved is None else from_dict(EpisodeConfig, saved, str(file))
    return RowBuilder(tokenizer, episode)


def resolve(name: str | Path) -> Path:
    """The directory of a model: the names in SHIPPED are in the package, everything else is a path."""
    return Path(str(files("zoomearth_jax.models") / SHIPPED[str(name)])) if str(name) in SHIPPED else Path(name)


def load_model(name: str | Path) -> LoadedModel:
    """Loads a shipped model, an HF directory, or the last checkpoint of a run.

    Raises:
        UserError: nothing there, another architecture, or a tokenizer with more ids than the model has.
    """
    directory = resolve(name)
    if not directory.exists():
        close = difflib.get_close_matches(str(name), SHIPPED, n=1)
        hint = (
            f"did you mean {close[0]!r}?" if close else f"give a model directory, a run, or one of {', '.join(SHIPPED)}"
        )
        raise UserError(f"{name}: no such model; {hint}")
    is_run = (directory / "checkpoints").is_dir() and not any(directory.glob("*.safetensors"))
    model = load_run_model(directory) if is_run else Qwen2_5_VL.from_pretrained(directory)
    rows = load_rows(directory)
    if len(rows.tokenizer) > model.config.text.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {len(rows.tokenizer)} ids, the model {model.config.text.vocab_size}"
        )
    return LoadedModel(model, rows)
