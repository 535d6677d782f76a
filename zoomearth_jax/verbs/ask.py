"""`zoomearth ask IMAGE QUESTION`: one episode on one image, of a file or of a tile store."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated

import tyro

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.images.image_folder import open_image
from zoomearth_jax.data_pipeline.images.tiles import expanded
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.asking import Answer, load
from zoomearth_jax.files import check_writable, write_file
from zoomearth_jax.rl.records import turn_record
from zoomearth_jax.verbs.map_files import MapFiles


@dataclasses.dataclass(frozen=True)
class AskConfig:
    """A question to a model.

    Attributes:
        image: an image file, however large; or an image of a tile store, as STORE/NAME, or only STORE if it holds one image.
        question: what to ask.
        model: `nano-grpo`, a model directory, a run, or ORG/NAME of the Hugging Face hub. (`nano` is the base, which doesn't
            speak the protocol.)
        save: write a picture of the overview with the box, and the crop, to this PNG file.
        save_crop: write the last crop, as the model saw it, to this .tif, .png or .jpg file, with the image's georeference.
        geojson: write the boxes that the model named and the windows that it saw, in WGS 84, to this file, and in the image's own
            CRS to a file beside it.
        images: how an image file becomes 8-bit RGB (bands, stretch, limit); a tile store's own settings rule.
        sampling: how tokens are drawn.
        compute: number types and backends; `--compute.param-dtype bfloat16` halves a large model's memory.
        mesh: how the devices of one process share a model that one of them can't hold.
        layout: slots and views other than the model's own, such as `--layout.prompt-len 640` for long questions.
        seed: random seed of sampling.
        json: print JSON.
    """

    image: Annotated[Path, tyro.conf.Positional]
    question: Annotated[str, tyro.conf.Positional]
    model: str = "nano-grpo"
    save: Path | None = None
    save_crop: Path | None = None
    geojson: Path | None = None
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = SamplingConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    layout: LayoutConfig = LayoutConfig()
    seed: int = 0
    json: bool = False


def ask(config: AskConfig) -> dict:
    """Plays the episode, prints it and returns it."""
    save = None if config.save is None else _png(config.save, config.image)
    image = open_image(config.image, config.images)
    on_map = MapFiles.checked(image, config.image, config.save_crop, config.geojson)
    policy = load(config.model, compute=config.compute, mesh=config.mesh, layout=config.layout)
    answer = policy.ask(image, config.question, seed=config.seed, **dataclasses.asdict(config.sampling))
    assert isinstance(answer, Answer)  # of one image
    episode = answer.episode
    result = {
        "answer": answer.answer,
        "box": None if answer.box is None else [round(c) for c in answer.box.corners],
        "window": None if episode.window is None else list(episode.window.corners),
        "turns": [turn_record(turn, image.frame) for turn in episode.turns],
        "truncated": episode.truncated,
        "note": answer.note or None,
    }
    if save is not None:
        write_file(save, lambda path: answer.show().save(path, format="PNG"))
    known = {"image": str(config.image), "question": config.question, "answer": answer.answer, "model": config.model}
    on_map.write(answer, known)
    print(json.dumps(result, indent=2, ensure_ascii=False) if config.json else _text(result, episode.box_reason))
    return result


def _png(path: Path, image: Path) -> Path:
    """Where the picture goes.

    Raises:
        UserError: no PNG file can be written there, or it is the image itself.
    """
    path = expanded(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: --save writes PNG; use a name that ends in .png")
    check_writable(path)
    if os.path.realpath(path) == os.path.realpath(expanded(image)):
        raise UserError(f"{path}: --save would overwrite the image itself; use another name")
    return path


def _text(result: dict, reason: str) -> str:
    lines = []
    for number, turn in enumerate(result["turns"], 1):
        lines.append(f"turn {number}  {turn['text']}")
        if "window" in turn:
            lines.append(f"window  {[round(c) for c in turn['window']]} px of the original")
    if len(result["turns"]) == 1 and reason not in ("", "absent"):
        lines.append(f"box     none: {reason}")
    if result["truncated"]:
        lines.append("note    the model ran out of room for its text")
    if result["note"]:
        lines.append(f"note    {result['note']}")
    answer = result["answer"] if result["answer"] is not None else "(the model gave no answer)"
    return "\n".join([*lines, f"answer  {answer}"])
