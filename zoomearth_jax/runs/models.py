"""Model directories: an HF checkpoint with its tokenizer, and `episode.json` beside it."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import EpisodeConfig, LayoutConfig, read_episode
from zoomearth_jax.configs.io import read_json
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.chat import load_tokenizer
from zoomearth_jax.data_pipeline.text.side_files import complete, read_processors
from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.files import SIDE_FILES, staged_model
from zoomearth_jax.models.families import abstract_model, family_of, load_pretrained, read_config, write_checkpoint
from zoomearth_jax.models.family import VisionLanguageModel
from zoomearth_jax.models.presets import preset
from zoomearth_jax.runs.checkpoints import load_run_model, saved_dtype, write_rows
from zoomearth_jax.runs.hub import fetched, is_hub_name


class LoadedModel(NamedTuple):
    """A model and what turns questions into its rows."""

    model: VisionLanguageModel
    rows: RowBuilder


QUESTION_ROOM = 64  # tokens that a question may have beside the words of a release; LRS-GRO's longest has 28
SHIPPED = {"nano": "nano", "nano-grpo": "nano_grpo", "nano-nested": "nano_nested"}  # name -> folder in the package


def save_model(directory: Path, model: VisionLanguageModel, rows: RowBuilder, dtype: str | None = None) -> None:
    """Writes config.json, safetensors (rounded to `dtype`), and what `write_rows` writes, all or nothing."""
    with staged_model(directory, owner=jax.process_index() == 0) as staging:
        write_checkpoint(model, staging, dtype)
        if jax.process_index() == 0:
            write_rows(staging, rows)


def load_rows(directory: Path, layout: LayoutConfig = LayoutConfig()) -> RowBuilder:
    """The tokenizer and the episode of a model directory; a published checkpoint, which has no episode.json, gets the episode
    of the preset qwen2_5_vl_3b.

    Args:
        layout: what changes of the episode.

    Raises:
        UserError: an unreadable tokenizer or episode; or a released ZoomEarth without its words.
    """
    directory, tokenizer = Path(directory), load_tokenizer(directory)
    saved = read_episode(directory)
    if saved is None:
        check_words(directory)
    merged_px = read_config(directory).merged_px
    episode = layout.of(saved or preset("qwen2_5_vl_3b")[1], merged_px)
    generation = _read_generation(directory / "generation_config.json", len(tokenizer))
    return RowBuilder(tokenizer, episode, merged_px, generation, read_processors(directory))


def is_released(directory: Path) -> bool:
    """Whether a directory without an episode.json is the authors' ZoomEarth, by its name, that in the hub's cache, or the one that
    its config.json gives."""
    names = [
        Path(directory).resolve().name,
        str(read_json(Path(directory) / "config.json", {}).get("_name_or_path", "")),
    ]
    names += [part for part in Path(directory).parts if part.startswith("models--")]
    return any("zoomearth" in re.sub("[^a-z]", "", name.lower()) for name in names)


def check_words(directory: Path) -> None:
    """Refuses a released ZoomEarth without an episode.json: it was trained with words that only its release has.

    Raises:
        UserError: it is one, with the command that gives it its words.
    """
    if is_released(directory):
        raise UserError(
            f"{directory}: a ZoomEarth checkpoint without episode.json; it answers rightly only with the words that it was "
            f"trained with: `zoomearth convert {directory} OUT --words FILE` takes them from the release's file"
        )


def released_episode(words: str, directory: Path) -> EpisodeConfig:
    """The episode of the authors' ZoomEarth with its words, as its release evaluates: overviews and crops of 512 px, boxes in px of
    the image at a longest side of 512, a crop whenever a box is named, T = 0.01 with the checkpoint's own repetition penalty,
    and slots that hold the words.

    Args:
        directory: the checkpoint, for its tokenizer and chat template.
    """
    penalty = read_json(Path(directory) / "generation_config.json", {}).get("repetition_penalty", 1.0)
    if not isinstance(penalty, int | float):
        raise UserError(f"{directory}/generation_config.json: repetition_penalty must be a number, not {penalty!r}")
    episode = dataclasses.replace(
        preset("qwen2_5_vl_3b")[1],
        instruction=words,
        box_px=512,
        gate="box",
        crop="reference",
        temperature=0.01,
        repetition_penalty=penalty,
        prompt_len=4096,
        turn_lens=(1024, 1024),
    )
    rows = RowBuilder(load_tokenizer(directory), episode, read_config(directory).merged_px)
    taken = len(rows.question_ids("", rows.layout.view_tokens))
    return dataclasses.replace(episode, prompt_len=-(-(taken + QUESTION_ROOM) // 64) * 64)


def _read_generation(file: Path, vocab_size: int) -> dict:
    """HF's generation_config.json with eos_token_id as a list; empty without the file."""
    generation = read_json(file, {})
    if not generation:
        return {}
    ends = generation.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(i) is int and 0 <= i < vocab_size for i in ends):
        raise UserError(f"{file}: eos_token_id {ends} is not among the {vocab_size} ids of the tokenizer")
    return generation | {"eos_token_id": ends}


def resolve(name: str | Path) -> Path:
    """The directory of a model: the names in SHIPPED are in the package, everything else is a path."""
    return (
        Path(str(files("zoomearth_jax.models") / SHIPPED[str(name)]))
        if str(name) in SHIPPED
        else Path(name).expanduser()
    )


def copy_side_files(source: Path, target: Path, keep: Sequence[str] = ()) -> None:
    """Copies what a model directory holds beside the config and the weights, in forms that transformers 4.x and 5.x read.

    Args:
        keep: names of files that are in the target already and stay.
    """
    for pattern in (*SIDE_FILES, "README.md", "LICENSE*"):
        for file in source.glob(pattern):
            if file.is_file() and file.name not in keep:
                shutil.copyfile(file, target / file.name)
    complete(target)


def is_run(directory: Path) -> bool:
    """Whether a model directory holds orbax checkpoints rather than safetensors."""
    return (directory / "checkpoints").is_dir() and not any(directory.glob("*.safetensors"))


def weights_dtype(directory: Path, step: int | None = None) -> str:
    """The type that most of a model directory's parameters have."""
    if not is_run(directory):
        return family_of(read_config(directory)).source_dtype(directory)
    return saved_dtype(directory, step)


def load_weights(
    directory: Path, compute: ComputeConfig, mesh: Mesh | None = None, step: int | None = None
) -> VisionLanguageModel:
    """The model of an HF directory, or of the last readable checkpoint of a run, or of the given step of one."""
    if is_run(directory):
        return load_run_model(directory, compute, mesh, step)
    return load_pretrained(directory, compute, mesh)


def count_parameters(name: str | Path) -> int:
    """Number of parameters of the model that `load_model` would load, from nothing but its config.json."""
    return sum(x.size for x in jax.tree.leaves(nnx.state(abstract_model(read_config(existing(name))), nnx.Param)))


def load_model(
    name: str | Path,
    compute: ComputeConfig = ComputeConfig(),
    mesh: Mesh | None = None,
    layout: LayoutConfig = LayoutConfig(),
) -> LoadedModel:
    """Loads a shipped model, an HF directory, the last checkpoint of a run, or a model of the Hugging Face hub, in the types of
    `compute`.

    Args:
        mesh: where the parameters go, sharded by `models.sharding.RULES`; the default device without one.
        layout: what changes of the model's episode.

    Raises:
        UserError: nothing there, another architecture, or a tokenizer with more ids than the model has.
    """
    directory = existing(name)
    model = load_weights(directory, compute, mesh)
    rows = load_rows(directory, layout)
    if rows.image_id != model.config.image_token_id:
        raise UserError(
            f"{directory}: <|image_pad|> is {rows.image_id} in the tokenizer, {model.config.image_token_id} in config.json"
        )
    if len(rows.tokenizer) > model.config.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {len(rows.tokenizer)} ids, the model {model.config.vocab_size}"
        )
    return LoadedModel(model, rows)


def existing(name: str | Path) -> Path:
    """The directory of a model: of a shipped one, at a path, or where neither is there of the Hugging Face hub's cache.

    Args:
        name: a name in SHIPPED, a path, or ORG/NAME of the hub.

    Raises:
        UserError: no such model, with a suggestion; or one that can't be fetched.
    """
    directory = resolve(name)
    try:
        if directory.is_dir():
            return directory
        if directory.exists():
            raise UserError(f"{name}: is a file; give the model directory that holds it")
    except OSError as error:
        raise UserError(f"{name}: can't be looked at ({error.strerror})") from None
    if is_hub_name(name):
        return fetched(str(name))
    hint = suggestion(str(name), SHIPPED, f"give a model directory, a run, or one of {', '.join(SHIPPED)}")
    raise UserError(f"{name}: no such model; {hint}")
