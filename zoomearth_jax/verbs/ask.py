"""`zoomearth ask IMAGE QUESTION`: one episode on one image, of a file or of a tile store."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.data_pipeline.images.image_folder import open_image
from zoomearth_jax.data_pipeline.images.regions import write_region
from zoomearth_jax.data_pipeline.images.sources import ImageSource, whole
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.text.words import read_words
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.asking import Answer, LoadedPolicy, load
from zoomearth_jax.evaluation.scripted import play_script, read_script
from zoomearth_jax.files import write_file
from zoomearth_jax.rl.records import turn_record
from zoomearth_jax.tools.pasting import pasted_all
from zoomearth_jax.tools.registry import find_tools
from zoomearth_jax.tools.zoom import Zoom
from zoomearth_jax.verbs.map_files import MapFiles
from zoomearth_jax.verbs.places import png_place, region_place


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
        tools: image tools that the model is offered and may call, by name, MODULE:NAME, address or hf:TASK=MODEL; `zoomearth tool`
            lists them. Give it after image and question.
        tool_instruction: text file with the words that offer the tools, with {tools} where their schemas go.
        script: JSON file whose texts stand in for the model's turns, {"turns": [...]}, to see what tools do with them.
        paste: write the image with all pictures that tools made put back into it to this .png, .tif or .jpg file, and where they
            come from to a JSON file beside it.
        tool: time limits of tools, and what they use that isn't part of the package.
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
    tools: tuple[str, ...] = ()
    tool_instruction: Path | None = None
    script: Path | None = None
    paste: Path | None = None
    tool: ToolsConfig = ToolsConfig()
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = SamplingConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    layout: LayoutConfig = LayoutConfig()
    seed: int = 0
    json: bool = False


def ask(config: AskConfig) -> dict:
    """Plays the episode, prints it and returns it."""
    save = None if config.save is None else png_place("--save", config.save, config.image)
    paste = None if config.paste is None else region_place("--paste", config.paste, config.image)
    if not config.tools and (config.tool_instruction or paste):
        raise UserError("ask: --tool-instruction and --paste go with --tools")
    image = open_image(config.image, config.images)
    on_map = MapFiles.checked(image, config.image, config.save_crop, config.geojson)
    words = "" if config.tool_instruction is None else read_words(config.tool_instruction)
    script = None if config.script is None else read_script(config.script)
    policy = load(config.model, compute=config.compute, mesh=config.mesh, layout=config.layout)
    answer = _scripted(config, policy, image, script) if script else _asked(config, policy, image, words)
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
    if paste is not None:
        _paste(paste, image, answer, config.tool.feather)
    print(json.dumps(result, indent=2, ensure_ascii=False) if config.json else _text(result, episode.box_reason))
    return result


def _asked(config: AskConfig, policy: LoadedPolicy, image: ImageSource, words: str) -> Answer:
    how = dataclasses.asdict(config.sampling)
    tools: dict = {"tools": config.tools, "tool_words": words, "tool_settings": config.tool}
    answer = policy.ask(image, config.question, seed=config.seed, **tools, **how)
    assert isinstance(answer, Answer)  # of one image
    return answer


def _scripted(config: AskConfig, policy: LoadedPolicy, image: ImageSource, script: list[str]) -> Answer:
    tools = find_tools(config.tools, config.tool)
    question = Question(image, config.question, answer="", level="global")
    if not tools:
        return play_script(script, question, Zoom(policy.rows), policy.rows)
    from zoomearth_jax.tools.toolbox import Toolbox  # needs the extra `tools`

    return play_script(script, question, Toolbox(policy.rows, tools, config.tool), policy.rows)


def _paste(path: Path, image: ImageSource, answer: Answer, feather: int) -> None:
    """Writes the image with the pictures of tools in it, and where they come from."""
    outcomes = [outcome for turn in answer.turns for outcome in turn.outcomes]
    pixels, put = pasted_all(image, outcomes, feather)
    write_region(path, pixels, image, whole(image))
    write_file(path.with_suffix(".json"), json.dumps({"pasted": put}, indent=2, ensure_ascii=False) + "\n")


def _text(result: dict, reason: str) -> str:
    lines = []
    for number, turn in enumerate(result["turns"], 1):
        lines.append(f"turn {number}  {turn['text']}")
        if "window" in turn:
            lines.append(f"window  {[round(c) for c in turn['window']]} px of the original")
        for tool in turn.get("tools", []):
            said = f"failed: {tool['error']}" if "error" in tool else tool["text"]
            lines.append(f"tool    {tool['tool']}: {said}")
    if len(result["turns"]) == 1 and reason not in ("", "absent"):
        lines.append(f"box     none: {reason}")
    if result["truncated"]:
        lines.append("note    the model ran out of room for its text")
    if result["note"]:
        lines.append(f"note    {result['note']}")
    answer = result["answer"] if result["answer"] is not None else "(the model gave no answer)"
    return "\n".join([*lines, f"answer  {answer}"])
