"""`zoomearth bench grpo`: whole GRPO iterations (two looks, rewards, update) against the same algorithm in torch.

The other side is HF's `generate` and autograd, in two ways: as released (the second turn a row at a time, its whole prompt
computed again, probabilities over prompts too) and a fair one (the second turn in one batch, probabilities of replies
only). All get the same weights, questions, rewards and cores, in float32. Before anything is timed the loss and the
gradient of one rollout are compared. The iterations of each side follow one another: the first after another side's took a
quarter longer, in memory anew.

With `--images` the scenes are files of 5,000 px. As released, a file is decoded whole for every rollout and again for every
crop; the fair way decodes it once per step; ours reads a tile store, which was built before.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from zoomearth_jax.bench.grown import GROWN, write_grown
from zoomearth_jax.bench.loader import stored_images
from zoomearth_jax.bench.torch_grpo import TorchGRPO
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.optimizer import OptimizerConfig
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions, site_question
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.questions.scenes import random_scene
from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.batches import GRPOBatch
from zoomearth_jax.rl.grpo import learner_rows
from zoomearth_jax.rl.objective import group_advantages
from zoomearth_jax.rl.rewards.episodes import episode_rewards
from zoomearth_jax.rl.rollout.engine import RolloutEngine, Trajectories
from zoomearth_jax.rl.rollout.scored import play_scored, send_parts
from zoomearth_jax.rl.state import init_state, reference_policy
from zoomearth_jax.rl.steps import make_grpo_step
from zoomearth_jax.runs.models import load_model

VARIANTS = ("released", "fair")
QUESTIONS = {"nano": 16, "100m": 4}  # per step
OBJECTIVE = ObjectiveConfig()
REWARD = RewardSpec(region_alpha=0.5, region_unit="side")
COMPACT = 32
SIDE = 5000  # px of image files
LR = 1e-7  # so that all iterations do the same work


@dataclasses.dataclass(frozen=True)
class GRPOBenchConfig:
    """GRPO iterations against the same algorithm in torch with HF's generate.

    Attributes:
        models: which of nano (the shipped policy) and 100m (the same policy in a decoder grown to 100 M parameters, which
            writes the same tokens).
        variants: which of released and fair.
        images: none (scenes are computed at the size asked for), or files of 5,000 px: png or tif.
        group: episodes per question.
        repeats: iterations of each, of which the median counts.
        json: print JSON.
    """

    models: tuple[str, ...] = tuple(QUESTIONS)
    variants: tuple[str, ...] = VARIANTS
    images: Literal["none", "png", "tif"] = "none"
    group: int = 8
    repeats: int = 5
    json: bool = False

    def __post_init__(self):
        for what, names, known in (("models", self.models, QUESTIONS), ("variants", self.variants, VARIANTS)):
            if unknown := set(names) - set(known):
                raise UserError(f"bench grpo: unknown {what} {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        if self.images not in ("none", "png", "tif"):
            raise UserError("bench grpo: images are none, png or tif")
        if self.group < 2 or self.repeats < 1:
            raise UserError("bench grpo: group must be at least 2, and repeats positive")


class Ours:
    """The iteration that `zoomearth grpo --compact 32` runs."""

    def __init__(self, model: str, group: int):
        """Loads the model."""
        loaded = load_model(model)
        self.rows, self.group, self.vision = loaded.rows, group, loaded.model.config
        optimizer = OptimizerConfig(lr=LR, warmup=0, decay=False).build(1)
        graph, self._state = init_state(loaded.model, optimizer, freeze_vision=True)
        self._reference = reference_policy(self._state, "float32")
        self._engine = RolloutEngine(loaded.model, self.rows)
        how: dict[str, Any] = {"temperature": 1.0, "banned_ids": self.rows.banned_ids, "objective": OBJECTIVE}
        self._step = make_grpo_step(graph, optimizer, self.rows.layout, **how)

    def play(self, questions: Sequence[Question], seed: int) -> tuple[Trajectories, np.ndarray]:
        """The episodes and their advantages."""
        played, rewards = play_scored(
            self._engine,
            self._state.params,
            questions,
            send_parts(self._engine, self.rows.prompts(questions), 1),
            jax.random.key(seed),
            sampling=SamplingConfig(temperature=1.0),
            group=self.group,
            score=lambda asked, played: episode_rewards(REWARD, asked, played.episodes, self.rows),
        )
        return played, np.asarray(group_advantages(rewards.result()["total"], self.group, OBJECTIVE.advantage))

    def update(self, played: Trajectories, advantages: np.ndarray) -> dict[str, float]:
        """Takes one optimizer step; returns its metrics."""
        rows = learner_rows(played, self.vision, True, compact=COMPACT)
        batch = jax.device_put(GRPOBatch(rows, played.logprobs, advantages))
        self._state, metrics = self._step(self._state, self._reference, batch)
        return {name: float(x) for name, x in jax.device_get(metrics).items()}


def bench_grpo(config: GRPOBenchConfig) -> list[dict]:
    """Rows `model, variant, ours_s, torch_s, ratio` (torch / ours) of whole iterations, with the seconds of their parts and
    what was played.

    Raises:
        UserError: torch is missing, or the two sides don't compute the same loss and gradient.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError("bench grpo needs torch: pip install torch==2.13.0 (make parity does)") from None
    return [row for name in config.models for row in _bench_model(name, config)]


def _bench_model(name: str, config: GRPOBenchConfig) -> list[dict]:
    with tempfile.TemporaryDirectory() as directory:
        write_grown(directory, GROWN[name])
        ours = Ours(directory, config.group)
        theirs = TorchGRPO(directory, ours.rows, config.group, OBJECTIVE, REWARD, LR)
    questions = scene_questions("grpo", 0, 0, QUESTIONS[name], global_share=0.0)
    with tempfile.TemporaryDirectory() as folder:
        if config.images != "none":
            questions, theirs.files = _as_files(len(questions), Path(folder), config.images)
        return _time(name, config, ours, theirs, questions)


def _as_files(count: int, folder: Path, suffix: str) -> tuple[list[Question], list[Path]]:
    """The same kind of questions about files of 5,000 px, with images in a tile store; and the files."""
    files, asked = [], []
    for number in range(count):
        rng = np.random.default_rng(number)
        scene = random_scene(rng, SIDE)
        files.append(folder / f"{number}.{suffix}")
        scene.write(files[-1])
        asked.append(site_question(scene, scene.sites[rng.integers(len(scene.sites))]))
    stored = stored_images(folder / "tiles", files)
    return [dataclasses.replace(q, image=image) for q, image in zip(asked, stored, strict=True)], files


def _time(
    name: str, config: GRPOBenchConfig, ours: Ours, theirs: TorchGRPO, questions: Sequence[Question]
) -> list[dict]:
    """Times a model and returns its rows."""
    written = _check_same(name, ours, theirs, questions)
    seconds: dict[str, list[tuple[float, float]]] = {}
    for who in ("ours", *config.variants):
        side = ours if who == "ours" else theirs.as_variant(who)
        gc.collect()
        timed = range(1, config.repeats + 1)
        for seed in timed if who == "ours" else [0]:  # to warm up; ours compiles once for each number of filled slots
            _iterate(side, questions, seed)
        seconds[who] = [_iterate(side, questions, seed) for seed in timed]
    episodes = len(questions) * config.group
    return [_row(name, variant, seconds, episodes, written) | {"images": config.images} for variant in config.variants]


def _row(name: str, variant: str, seconds: dict, episodes: int, written: float) -> dict:
    def median(who, part):
        return statistics.median(part(one) for one in seconds[who])

    ours, theirs = (median(who, sum) for who in ("ours", variant))
    row = {"model": name, "variant": variant, "ours_s": ours, "torch_s": theirs, "ratio": theirs / ours}
    for place, part in enumerate(("rollout", "update")):
        for who, label in (("ours", "ours"), (variant, "torch")):
            row[f"{label}_{part}_s"] = median(who, lambda one, place=place: one[place])
    return row | {"episodes": episodes, "tokens_an_episode": written, "cores": len(os.sched_getaffinity(0))}


def _iterate(side, questions: Sequence[Question], seed: int) -> tuple[float, float]:
    """Seconds of the rollout with its rewards, and of the update."""
    began = time.perf_counter()
    played = side.play(questions, seed)
    between = time.perf_counter()
    side.update(*played)
    return between - began, time.perf_counter() - between


def _check_same(name: str, ours: Ours, theirs: TorchGRPO, questions: Sequence[Question]) -> float:
    """Compares the losses and gradients of one rollout; tokens that an episode wrote in it."""
    played, advantages = ours.play(questions, 0)
    if not any(e.zoomed for e in played.episodes):
        raise UserError(f"bench grpo: no episode of {name} zooms")
    a, b = ours.update(played, advantages), theirs.update(theirs.sequences_of(played, questions), advantages)
    differ = [
        f"{key} {a[key]:.6g} and {b[key]:.6g}"
        for key in ("loss", "grad_norm")
        if abs(a[key] - b[key]) > 2e-3 * abs(b[key]) + 1e-5
    ]
    if differ:
        raise UserError(f"bench grpo: {name} differs in {', '.join(differ)}")
    return float(played.replies.target.sum(axis=1).mean())
