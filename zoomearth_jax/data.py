"""`zoomearth data check` and `zoomearth data prepare`: what is in a folder of questions, and TensorFlow datasets made of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Literal, Union

import numpy as np
import tyro
from tqdm import tqdm

from zoomearth_jax.data_check import draw_grid, find_problems, open_images, read_cleaned, statistics
from zoomearth_jax.data_pipeline.image_folder import ImageFolder
from zoomearth_jax.data_pipeline.images import ImageSource
from zoomearth_jax.data_pipeline.lrs_gro import LrsGroRow
from zoomearth_jax.data_pipeline.lrs_gro_files import images_of, manifest
from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class CheckConfig:
    """Reads a folder's questions, tells what they are like and what is wrong with them, and draws a sample.

    Attributes:
        directory: LRS-GRO (sft.jsonl, rl.jsonl, test.jsonl or folders saved by `datasets`; images in images/), one such file,
            or a folder with questions.jsonl.
        split: only this one.
        sample: questions to draw; 0 draws none.
        out: the PNG picture of the sample.
        manifests: folder with one manifest a split: written where there is none, else compared with.
        seed: of the sample.
        strict: end with exit code 2 if there is any problem.
        json: print JSON.
    """

    directory: Annotated[Path, tyro.conf.Positional]
    split: Literal["sft", "rl", "test"] | None = None
    sample: int = 16
    out: Path = Path("runs/data_check.png")
    manifests: Path | None = None
    seed: int = 0
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
        UserError: nothing readable there; with `strict`, any problem.
    """
    splits = read_cleaned(config.directory)
    if config.split and config.split not in splits:
        raise UserError(f"{config.directory}: no split {config.split!r}; it has {', '.join(splits)}")
    images, broken = _images(config, splits)
    problems = find_problems(splits, images, broken) + _compare_manifests(config, splits)
    if config.split:
        splits = {config.split: splits[config.split]}
        problems = [p for p in problems if config.split in p["split"].split(", ")]
    drawn = _draw(config, splits, images) if config.sample else 0
    report = {
        "folder": str(config.directory),
        "splits": {split: statistics(rows, images) for split, rows in splits.items()},
        "problems": problems,
        "picture": str(config.out) if drawn else None,
    }
    print(json.dumps(report, indent=2, ensure_ascii=False) if config.json else _text(report))
    if config.strict and problems:
        raise UserError(f"{config.directory}: {len(problems)} kinds of problems, first: {_line(problems[0])}")
    return report


def _images(config: CheckConfig, splits) -> tuple[dict[str, ImageSource], dict[str, tuple[str, str]]]:
    names = dict.fromkeys(row.image_name for rows in splits.values() for row in rows)
    bar = tqdm(names, desc="images", disable=not sys.stderr.isatty(), leave=False)
    return open_images(ImageFolder(images_of(config.directory)), bar)


def _draw(config: CheckConfig, splits: dict[str, list[LrsGroRow]], images) -> int:
    """Draws a sample of the rows whose image is there; returns how many."""
    rows = [row for split in splits.values() for row in split if row.image_name in images]
    chosen = np.random.default_rng(config.seed).permutation(len(rows))[: config.sample]
    sample = sorted((rows[i] for i in chosen), key=lambda row: row.image_name)  # each image is decoded once
    if sample:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        partial = config.out.with_name(config.out.name + ".partial")
        draw_grid(sample, images).save(partial, "PNG")
        partial.replace(config.out)
    return len(sample)


def _compare_manifests(config: CheckConfig, splits: dict[str, list[LrsGroRow]]) -> list[dict]:
    """Writes the manifests that aren't there; problems where those that are say something else."""
    problems = []
    for split, rows in splits.items() if config.manifests else ():
        file, now = config.manifests / f"{split}.json", manifest(rows)
        if not file.exists():
            config.manifests.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(file.name + ".partial")
            partial.write_text(json.dumps(now, ensure_ascii=False, indent=1), encoding="utf-8")
            partial.replace(file)
            continue
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            keys, digest = {tuple(key) for key in before["keys"]}, before["sha256"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{file}: not a manifest ({type(error).__name__}: {error}); remove it") from None
        changed = sorted(keys ^ {tuple(key) for key in now["keys"]})
        if changed or digest != now["sha256"]:
            what = "rows differ from the manifest" if changed else "answers or boxes differ from the manifest"
            examples = [": ".join(key) for key in changed[:3]]
            problems.append({"split": split, "problem": what, "count": len(changed), "examples": examples})
    return problems


def _line(problem: dict) -> str:
    examples = "; ".join(problem["examples"])
    return f"{problem['split']}: {problem['problem']}, {problem['count']} x: {examples}"


def _text(report: dict) -> str:
    lines = []
    for split, numbers in report["splits"].items():
        lines.append(f"{split}")
        for name, value in numbers.items():
            items = value.items() if isinstance(value, dict) else ()
            lines.append(f"  {name}: " + (", ".join(f"{k} {v}" for k, v in items) if items else str(value or "none")))
    lines += [f"problem in {_line(problem)}" for problem in report["problems"]] or ["no problems"]
    return "\n".join([*lines, *([f"picture: {report['picture']}"] if report["picture"] else [])])


def prepare(config: PrepareConfig) -> dict:
    """Writes the dataset, prints its splits and returns them."""
    from zoomearth_jax.data_pipeline import tfds_builders  # a second that other verbs don't need

    name, _, variant = config.dataset.partition("/")
    kind = {"lrs_gro": tfds_builders.LrsGro, "uhr_tiles": tfds_builders.UhrTiles}[name]
    builder = kind(data_dir=config.out, **({"config": variant} if variant else {}))
    with contextlib.redirect_stdout(sys.stderr):  # the library's remarks
        tfds_builders.prepare(builder, config.directory, config.beam_runner, config.beam_options)
    result = {"folder": str(builder.data_path), "splits": {s: i.num_examples for s, i in builder.info.splits.items()}}
    print(json.dumps(result))
    return result


COMMANDS = {"check": (CheckConfig, check), "prepare": (PrepareConfig, prepare)}
_Command = Union[*(Annotated[kind, tyro.conf.subcommand(name)] for name, (kind, _) in COMMANDS.items())]


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
