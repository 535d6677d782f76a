"""`zoomearth bench pixels`: what the nano policy learns of real aerial photographs (docs/pixels.md)."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.bench.crowns import (
    ANSWERS,
    package_folder,
    panchromatic,
    read_photos,
    write_closeups,
    write_folder,
    write_passive,
)
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.training import GRPOConfig, SFTConfig
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.data_pipeline.questions.mixture import SCENES
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.baselines import CROPS
from zoomearth_jax.evaluation.play import play
from zoomearth_jax.evaluation.statistics import average
from zoomearth_jax.files import check_writable, write_file
from zoomearth_jax.rl.records import are_correct, ious
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.runs.saved_steps import is_finished
from zoomearth_jax.runs.start import on_mesh
from zoomearth_jax.terminal.progress import say
from zoomearth_jax.verbs.grpo import grpo
from zoomearth_jax.verbs.sft import sft

ACTIVE, PASSIVE = LayoutConfig(turn_lens=(20, 12)), LayoutConfig(turn_lens=(12,))  # one turn: no crop can be asked for
FINAL = "SFT + GRPO"


@dataclasses.dataclass(frozen=True)
class PixelsConfig:
    """Fine-tuning and GRPO of the nano model on real aerial photographs, and its accuracy on places that it has not seen.

    The same command goes on where it was interrupted, and takes further seeds.

    Attributes:
        out: directory for the folders of questions, which are made once, and the runs, seedN/NAME.
        photos: folder with the photographs and their boxes; by default that of the installed package deepforest.
        mosaics: images to train on, 8 questions each.
        closeups: pictures of plates by which the model learns to read photographs before it learns to look.
        held_out: images of the other part of the photographs, 8 questions each.
        seeds: of fine-tuning and GRPO; the questions are the same for all.
        reading_steps: optimizer steps on the close-ups and drawn scenes, once a seed.
        sft_steps: optimizer steps of fine-tuning after them.
        steps: rollouts of GRPO.
        batch_size: questions that the evaluation plays at once.
        json: print JSON.
    """

    out: Path = Path("runs/pixels")
    photos: Path | None = None
    mosaics: int = 96
    closeups: int = 1024
    held_out: int = 40
    seeds: tuple[int, ...] = (0, 1, 2)
    reading_steps: int = 300
    sft_steps: int = 240
    steps: int = 100
    batch_size: int = 64
    json: bool = False

    def __post_init__(self):
        if not self.seeds or min(self.seeds) < 0:
            raise UserError("bench pixels: give at least one seed, and no negative ones")
        sizes = self.mosaics, self.closeups, self.held_out, self.reading_steps, self.sft_steps, self.steps
        if min(*sizes, self.batch_size) < 1:
            raise UserError("bench pixels: all numbers of images and steps, and batch_size, must be positive")


@dataclasses.dataclass(frozen=True)
class _Scores:
    """Of one policy and way of showing crops: whether each answer is right, IoU of each box and whether there was a crop, each
    float [seeds, questions]."""

    correct: np.ndarray
    iou: np.ndarray
    zoomed: np.ndarray


def bench_pixels(config: PixelsConfig) -> list[dict]:
    """Rows `policy, crops, accuracy` with its 95 % interval over questions (each the mean of its seeds) and its standard deviation
    over seeds; `minus_passive`, the difference to the policy without crops, paired by question, with its interval; and IoU and
    zoom rate. First the rows of chance and of the answer that is most frequent in training.

    Raises:
        UserError: no photographs, or `out` holds questions of other settings.
    """
    check_writable(config.out, directory=True)
    train, passive, test = _folders(config)
    questions = read_questions(test)
    frequent = collections.Counter(q.answer for q in read_questions(train)).most_common(1)[0][0]
    scores: dict[tuple[str, str], list[_Scores]] = collections.defaultdict(list)
    with on_mesh(MeshConfig(), "nano", processes=False) as mesh:
        player = _Player(questions, mesh, config.batch_size)
        for seed in config.seeds:
            for name, folder, layout in (("active", train, ACTIVE), ("passive", passive, PASSIVE)):
                tuned, final = _train(config, seed, name, folder, layout)
                ways = ("shown", "masked", "oracle") if name == "active" else ("shown",)
                for stage, run in (("SFT", tuned), (FINAL, final)):
                    for way in ways:
                        key = (stage, way) if name == "active" else (f"passive {stage}", "none")
                        scores[key].append(player(run, way))
                        say(f"seed {seed}, {key[0]}, crops {key[1]}: {scores[key][-1].correct.mean():.3f}")
    rows = [{"policy": "chance", "accuracy": 1 / len(ANSWERS)}]
    rows += [{"policy": f"always {frequent!r}", "accuracy": float(np.mean([q.answer == frequent for q in questions]))}]
    baseline = _stacked(scores[f"passive {FINAL}", "none"])
    rows += [_row(*key, _stacked(values), baseline) for key, values in scores.items()]
    write_file(config.out / "results.json", json.dumps(rows, indent=2) + "\n")
    return rows


def _folders(config: PixelsConfig) -> tuple[Path, Path, Path]:
    """The folders of questions, made if they aren't there: for training, the same without boxes, for the test."""
    folders = train, passive, test = tuple(config.out / name for name in ("train", "passive", "test"))
    note, settings = (
        config.out / "questions.json",
        {name: getattr(config, name) for name in ("mosaics", "closeups", "held_out")},
    )
    if note.exists():
        if json.loads(note.read_text(encoding="utf-8")) != settings:
            raise UserError(f"{config.out}: holds questions of other settings; take another --out, or delete it")
        return train, passive, test
    if any(folder.exists() for folder in (*folders, config.out / "closeups")):
        raise UserError(f"{config.out}: its questions were not written to the end; delete it, or take another --out")
    photos = panchromatic(read_photos(config.photos or package_folder()))
    write_closeups(config.out / "closeups", photos, config.closeups)
    write_folder(train, photos, "train", config.mosaics)
    write_folder(test, photos, "test", config.held_out)
    write_passive(passive, train)
    write_file(note, json.dumps(settings) + "\n")
    return train, passive, test


def _train(config: PixelsConfig, seed: int, name: str, folder: Path, layout: LayoutConfig) -> tuple[Path, Path]:
    """The runs of fine-tuning and of GRPO after it; what is finished stays. First the vision encoder, which has seen drawn scenes
    only, learns from close-ups, and from scenes beside them, which keep in use what the model knows of finding a colour's place."""
    out = config.out / f"seed{seed}"
    shared: dict[str, Any] = {"seed": seed, "overwrite": True}
    reading = SFTConfig(
        data=(str(config.out / "closeups"), SCENES),
        out=out / "reading",
        steps=config.reading_steps,
        freeze_vision=False,
        **shared,
    )
    shared |= {"data": (str(folder),), "layout": layout}
    tuning = SFTConfig(model=str(reading.out), out=out / f"{name}-sft", steps=config.sft_steps, **shared)
    no_kl, final = ObjectiveConfig(kl_weight=0.0), out / f"{name}-grpo"
    learning = GRPOConfig(
        model=str(tuning.out), out=final, steps=config.steps, objective=no_kl, panel_every=0, **shared
    )
    fresh = False  # whether the run before was trained anew
    for run in (reading, tuning, learning):
        fresh = fresh or not is_finished(run)
        if fresh:
            sft(run) if isinstance(run, SFTConfig) else grpo(run)
    return tuning.out, learning.out


class _Player:
    """Plays the held-out questions greedily with a run's last policy."""

    def __init__(self, questions: list[Question], mesh: Mesh, batch_size: int):
        self._questions, self._mesh, self._batch_size = questions, mesh, batch_size
        self._engines: dict[int, RolloutEngine] = {}

    def __call__(self, run: Path, way: str) -> _Scores:
        """Of one seed; `way` is one of CROPS."""
        model, rows = load_model(run, mesh=self._mesh)
        engine = self._engines.setdefault(rows.layout.num_turns, RolloutEngine(model, rows, self._mesh))
        how = {"sampling": SamplingConfig(temperature=0.0), "batch_size": self._batch_size}
        tool, params = CROPS[way](engine.tool, rows), nnx.state(model, nnx.Param)
        episodes = play(engine, params, self._questions, jax.random.key(0), tool=tool, **how)
        found = ious(self._questions, [e.box if e.zoomed else None for e in episodes])
        correct = are_correct(self._questions, episodes, "exact")
        return _Scores(correct.astype(float), found, np.array([e.zoomed for e in episodes], float))


def _stacked(scores: list[_Scores]) -> _Scores:
    return _Scores(*(np.stack([getattr(s, field.name) for s in scores]) for field in dataclasses.fields(_Scores)))


def _row(policy: str, crops: str, scores: _Scores, passive: _Scores) -> dict:
    row = {"policy": policy, "crops": crops} | average("accuracy", scores.correct.mean(0))
    if len(scores.correct) > 1:
        row["spread"] = float(scores.correct.mean(1).std(ddof=1))
    if crops != "none":
        row |= average("minus_passive", (scores.correct - passive.correct).mean(0))
        row |= {"iou": float(scores.iou.mean()), "zoom_rate": float(scores.zoomed.mean())}
    return {
        key: [round(bound, 3) for bound in value] if isinstance(value, list) else value for key, value in row.items()
    }
