"""`zoomearth convert SOURCE OUT`: HF directories and orbax checkpoints into each other, with another number type if wanted."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from flax import nnx

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import EPISODE
from zoomearth_jax.data_pipeline.text.words import read_words
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import staged_model, write_file
from zoomearth_jax.models.families import abstract_model, hf_config, read_config, write_checkpoint
from zoomearth_jax.runs.checkpoints import Checkpoints
from zoomearth_jax.runs.hub_upload import check_upload, upload
from zoomearth_jax.runs.model_card import model_card
from zoomearth_jax.runs.models import (
    check_words,
    copy_side_files,
    existing,
    is_run,
    load_weights,
    released_episode,
    weights_dtype,
)
from zoomearth_jax.runs.saved_steps import numbers


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Settings of a conversion.

    Attributes:
        source: an HF directory of a Qwen2.5-VL, a run of ours, a shipped model's name, or ORG/NAME of the Hugging Face hub.
        out: the directory to make.
        step: the step of a run; its last one by default.
        to: `hf` for safetensors that transformers loads, `orbax` for the form of a run's checkpoint.
        dtype: number type of the written parameters; `keep` leaves them as they are.
        words: a file of the user's copy of the authors' release that holds the instruction which a ZoomEarth checkpoint was trained
            with: a text, or the Python file with the string (FILE.py:NAME where it has several). It goes into episode.json, with
            the release's views, boxes, gate and temperature.
        push_to_hub: OWNER/NAME of the Hugging Face hub, to which the files of the export are uploaded, with the token of
            `hf auth login` or HF_TOKEN. README.md, a model card with what the run says of itself, is made where there is none.
        public: let everybody see the hub's repository; without it a new one is private, and one that is there stays as it is.
        commit_message: of the upload.
        overwrite: replace a model that `out` holds, and add a commit to a repository that is there.
        json: print the summary as JSON.
    """

    source: Annotated[Path, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    step: int | None = None
    to: Literal["hf", "orbax"] = "hf"
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    words: str | None = None
    push_to_hub: str = ""
    public: bool = False
    commit_message: str = ""
    overwrite: bool = False
    json: bool = False

    def __post_init__(self):
        if self.push_to_hub and self.to != "hf":
            raise UserError("--push-to-hub uploads safetensors; leave --to orbax out")
        if (self.public or self.commit_message) and not self.push_to_hub:
            raise UserError("--public and --commit-message are about an upload; give --push-to-hub OWNER/NAME too")


def convert(config: ConvertConfig) -> dict:
    """Runs the conversion, prints a summary and returns it."""
    source, out, began = existing(config.source), config.out.expanduser(), time.monotonic()
    _check_target(config, source, out)
    _check_step(config, source)
    if config.push_to_hub:
        check_upload(config.push_to_hub)
    words = None if config.words is None else read_words(config.words)
    if words is None and not (source / EPISODE).exists():
        check_words(source)
    dtype = weights_dtype(source, config.step) if config.dtype == "keep" else config.dtype
    compute = ComputeConfig(param_dtype=dtype)
    size = _size(source, compute)
    _check_room(out, size)
    with staged_model(out) as staging:
        model = load_weights(source, compute, step=config.step)
        if config.to == "hf":
            write_checkpoint(model, staging)
        else:
            with Checkpoints(staging) as checkpoints:
                checkpoints.save_params(0, model)
            (staging / "config.json").write_text(json.dumps(hf_config(model.config), indent=2) + "\n", encoding="utf-8")
        if words is not None:
            text = json.dumps(dataclasses.asdict(released_episode(words, source)), indent=2, ensure_ascii=False)
            (staging / EPISODE).write_text(text + "\n", encoding="utf-8")
        copy_side_files(source, staging, keep=(EPISODE,) if words is not None else ())
        if config.push_to_hub and not (staging / "README.md").exists():
            write_file(staging / "README.md", model_card(config.push_to_hub, source, config.step))
        files = sorted(file.name for file in staging.iterdir())
    summary = {
        "out": str(out),
        "to": config.to,
        "step": config.step,
        "dtype": dtype,
        "parameters": sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))),
        "bytes": size,
        "seconds": round(time.monotonic() - began, 1),
    }
    if config.push_to_hub:
        message = config.commit_message or f"{source.resolve().name} as {dtype}, by zoomearth convert"
        summary["url"] = upload(out, files, config.push_to_hub, config.public, message, config.overwrite)
    text = "{out}: {parameters:,} parameters as {dtype}, {bytes:,} bytes, {seconds} s".format(**summary)
    text += f", uploaded to {summary['url']}" if config.push_to_hub else ""
    print(json.dumps(summary) if config.json else text)
    return summary


def _check_target(config: ConvertConfig, source: Path, out: Path) -> None:
    try:
        target, origin = out.resolve(), source.resolve()
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; give a directory to make")
    except (OSError, RuntimeError) as error:  # a name too long, links in a circle
        raise UserError(f"{out}: can't be a directory ({error}); give another one") from None
    if target == origin:
        raise UserError(f"{out}: is the source itself; give another directory")
    if target.is_relative_to(origin) or origin.is_relative_to(target):
        raise UserError(f"{out}: the source and the directory to make lie inside one another; give another directory")
    if (out / "run.yaml").exists():
        raise UserError(f"{out}: holds a training run; give another directory")
    holds_model = any(
        (out / name).exists()
        for name in ("config.json", "model.safetensors", "model.safetensors.index.json", "checkpoints")
    )
    if holds_model and not config.overwrite:
        raise UserError(f"{out}: holds a model; pass --overwrite to replace it, or give another directory")


def _check_step(config: ConvertConfig, source: Path) -> None:
    if config.step is None:
        return
    if not is_run(source):
        raise UserError(f"{source}: is no run, so it has no steps; leave --step out")
    steps = numbers(source / "checkpoints")
    if config.step not in steps:
        raise UserError(f"{source}: no step {config.step}; there are {', '.join(map(str, steps)) or 'none'}")


def _size(source: Path, compute: ComputeConfig) -> int:
    """Bytes of the parameters in the type they are written in."""
    model = abstract_model(read_config(source), compute)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _check_room(out: Path, size: int) -> None:
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < size * 1.02:
        raise UserError(f"{out}: {size / 1e6:,.0f} MB to write, {free / 1e6:,.0f} MB free on that disk")
