"""`zoomearth data check` and `zoomearth data prepare`: what is in a folder of questions, and TensorFlow datasets made of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import numpy as np
import tyro

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.questions.folder_rows import Judged, Problem
from zoomearth_jax.data_pipeline.questions.folders import judge_all
from zoomearth_jax.data_pipeline.questions.json_lines import parse_object
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import check_writable, write_file
from zoomearth_jax.terminal.progress import tracked
from zoomearth_jax.verbs.data_check import (
    broken_images,
    draw_grid,
    grouped,
    manifest,
    overview_of,
    problems_between,
    problems_of_pixels,
    statistics,
)

_FEW = 3  # rows of a problem that are shown where not all are


@dataclasses.dataclass(frozen=True)
class CheckConfig:
    """Reads a folder's questions as training does, tells what they are like, what is wrong with them and what comes of it, and
    draws a sample. Exit code 2 where training refuses the folder.

    Attributes:
        directory: LRS-GRO (sft.jsonl, rl.jsonl, test.jsonl or folders saved by `datasets`; images in images/), one such file,
            or a folder with questions.jsonl.
        split: only this one.
        sample: questions to draw; 0 draws none.
        out: the PNG picture of the sample.
        manifests: folder with one manifest per split: written where there is none, else compared with.
        seed: random seed of the sample.
        decode: decode every pixel of every image; without it only headers are read, and the images that are drawn.
        images: how image files become 8-bit RGB, as training is told.
        strict: end with exit code 2 at any problem, not only at those for which training refuses the folder.
        json: print JSON.
    """

    directory: Annotated[Path, tyro.conf.Positional]
    split: Literal["sft", "rl", "test"] | None = None
    sample: int = 16
    out: Path = Path("runs/data_check.png")
    manifests: Path | None = None
    seed: int = 0
    decode: bool = False
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    strict: bool = False
    json: bool = False

    def __post_init__(self):
        if self.sample < 0 or self.sample > 400:
            raise UserError("--sample: between 0 and 400")
        if self.out.suffix.lower() != ".png":
            raise UserError(f"{self.out}: --out writes PNG; use a name that ends in .png")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Writes a TensorFlow dataset (array_record files) from a folder; read it with `builder.as_data_source()`.

    Attributes:
        directory: the folder: LRS-GRO's for lrs_gro, any folder of images for the others.
        dataset: lrs_gro (rows), uhr_tiles/tiles or uhr_tiles/overviews (pixels).
        out: where datasets are kept.
        beam_runner: an Apache Beam runner that does the work, such as DirectRunner; needs the extra `beam`.
        beam_options: options of the runner, such as project=NAME region=PLACE.
    """

    directory: Annotated[Path, tyro.conf.Positional]
    dataset: Literal["lrs_gro", "uhr_tiles/tiles", "uhr_tiles/overviews"] = "lrs_gro"
    out: Path = Path("runs/tfds")
    beam_runner: str | None = None
    beam_options: tuple[str, ...] = ()


def check(config: CheckConfig) -> dict:
    """Checks a folder, prints the report and returns it.

    Raises:
        UserError: training and evaluation refuse the folder; with `strict`, any problem.
    """
    if config.sample:
        check_writable(config.out)
    splits = judge_all(config.directory, config.images, _bar("rows"))
    if config.split and config.split not in splits:
        raise UserError(f"{config.directory}: no split {config.split!r}; it has {', '.join(splits)}")
    shown: dict[str, Judged] = {config.split: splits[config.split]} if config.split else splits
    sample, broken = _sample(config, shown)
    found = [(split, problem) for split, judged in splits.items() for problem in judged.problems]
    found += problems_between({split: judged.rows for split, judged in splits.items()})
    found += problems_of_pixels(shown, broken)
    problems = grouped(found) + _compare_manifests(config, splits)
    if config.split:
        problems = [p for p in problems if config.split in p["split"].split(", ")]
    report = {
        "folder": str(config.directory),
        "splits": {split: statistics(judged) for split, judged in shown.items()},
        "problems": problems,
        "picture": str(config.out) if _draw(config, sample) else None,
    }
    print(json.dumps(report, indent=2, ensure_ascii=False) if config.json else _text(report))
    _judge(config, found, problems)
    return report


def _judge(config: CheckConfig, found: list[tuple[str, Problem]], problems: list[dict]) -> None:
    """Ends as the problems ask for; the faults that training refuses come first."""
    refused = [str(p) for split, p in found if p.effect == "refused" and config.split in (None, split)]
    if refused:
        count = f"{len(refused):,} {'fault' if len(refused) == 1 else 'faults'}"
        raise UserError(f"{config.directory}: sft, grpo and evaluate refuse it for {count}, first: {refused[0]}")
    if config.strict and problems:
        raise UserError(f"{config.directory}: {len(problems)} kinds of problems, first: {_line(problems[0])}")


def _bar(what: str) -> Callable:
    return functools.partial(tracked, label=what)


def _sample(config: CheckConfig, splits: dict[str, Judged]) -> tuple[list[tuple[Question, np.ndarray]], dict[str, str]]:
    """Questions to draw, with their overviews; and what is said of the images that were found broken on the way, by name:
    all of them are decoded with `decode`, else those that are drawn."""
    taken = [pair for judged in splits.values() for pair in judged.taken]
    images = {row.image: question.image for row, question in taken}
    broken = broken_images(_bar("images")(images.items())) if config.decode else {}
    chosen = np.random.default_rng(config.seed).permutation(len(taken))[: config.sample]
    sample, name, overview = [], "", None
    for row, question in sorted((taken[i] for i in chosen), key=lambda pair: pair[0].image):  # each is decoded once
        if row.image != name:
            name, overview = row.image, None
            try:
                overview = None if name in broken else overview_of(question.image)
            except UserError as error:
                broken[name] = str(error)
        if overview is not None:
            sample.append((question, overview))
    return sample, broken


def _draw(config: CheckConfig, sample: list[tuple[Question, np.ndarray]]) -> bool:
    """Draws the sample; whether there is one."""
    if sample:
        write_file(config.out, lambda path: draw_grid(sample).save(path, "PNG"))
    return bool(sample)


def _compare_manifests(config: CheckConfig, splits: dict[str, Judged]) -> list[dict]:
    """Writes the manifests that aren't there; problems where those that are say something else."""
    if config.manifests is None:
        return []
    problems = []
    for split, judged in splits.items():
        file, now = config.manifests / f"{split}.json", manifest(judged.rows)
        if not file.exists():
            write_file(file, json.dumps(now, ensure_ascii=False, indent=1))
            continue
        try:
            before = parse_object(file.read_text(encoding="utf-8", errors="surrogateescape"))
            keys, digest = {tuple(key) for key in before["keys"]}, before["sha256"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{file}: not a manifest ({type(error).__name__}: {error}); remove it") from None
        changed = sorted(keys ^ {tuple(key) for key in now["keys"]})
        if changed or digest != now["sha256"]:
            what = "rows differ from the manifest" if changed else "answers or boxes differ from the manifest"
            rows = [": ".join(key) for key in changed]
            problems.append({"split": split, "problem": what, "effect": "noted", "count": len(changed), "rows": rows})
    return problems


def _line(problem: dict) -> str:
    """A kind of problem with its first rows."""
    rows = "; ".join(problem["rows"][:_FEW]) + ("; ..." if len(problem["rows"]) > _FEW else "")
    return f"{problem['split']}: {problem['problem']}, {problem['count']:,} x: {rows}"


def _lines(problem: dict) -> list[str]:
    """What costs rows or the folder is listed in full, the rest by its first rows."""
    if problem["effect"] == "noted":
        return [f"problem in {_line(problem)}"]
    head = f"problem in {problem['split']}: {problem['problem']}, {problem['count']:,} x, {problem['effect']}"
    return [head, *(f"  {row}" for row in problem["rows"] if row)]


def _text(report: dict) -> str:
    lines = []
    for split, numbers in report["splits"].items():
        lines.append(f"{split}")
        for name, value in numbers.items():
            items = value.items() if isinstance(value, dict) else ()
            lines.append(f"  {name}: " + (", ".join(f"{k} {v}" for k, v in items) if items else str(value or "none")))
    lines += [line for problem in report["problems"] for line in _lines(problem)] or ["no problems"]
    if report["picture"]:
        lines.append(f"picture: {report['picture']}")
    return "\n".join(lines)


def prepare(config: PrepareConfig) -> dict:
    """Writes the dataset, prints its splits and returns them."""
    from zoomearth_jax.data_pipeline import tfds_builders  # a second that other verbs don't need

    name, _, variant = config.dataset.partition("/")
    kind = {"lrs_gro": tfds_builders.LrsGro, "uhr_tiles": tfds_builders.UhrTiles}[name]
    builder = kind(data_dir=config.out, config=variant or None)
    with contextlib.redirect_stdout(sys.stderr):  # the library's remarks
        tfds_builders.prepare(builder, config.directory, config.beam_runner, config.beam_options)
    result = {"folder": str(builder.data_path), "splits": {s: i.num_examples for s, i in builder.info.splits.items()}}
    print(json.dumps(result))
    return result


COMMANDS: dict[str, tuple[type, Callable]] = {"check": (CheckConfig, check), "prepare": (PrepareConfig, prepare)}
_Command: Any = Union[*(Annotated[kind, tyro.conf.subcommand(name)] for name, (kind, _) in COMMANDS.items())]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Looks after folders of questions.

    Attributes:
        command: what to do.
    """

    command: _Command


def data(config: DataConfig) -> dict:
    """Runs the command."""
    return next(run for kind, run in COMMANDS.values() if isinstance(config.command, kind))(config.command)
