"""`zoomearth sft`: supervised fine-tuning teaches the protocol: think, name a box, look, answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from flax import nnx

from zoomearth_jax.checkpoint import Checkpoints
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.configs.train import OptimizerConfig
from zoomearth_jax.data_pipeline.questions import Question, read_questions, scene_questions
from zoomearth_jax.metrics import MetricsLog
from zoomearth_jax.model_io import load_model
from zoomearth_jax.models.lora import add_lora
from zoomearth_jax.rl.learner import RowBatch, init_state, make_sft_step, row_batch
from zoomearth_jax.runs import finite, open_run


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Settings of a fine-tuning run.

    Attributes:
        model: `nano`, a model directory or a run to start from.
        out: the run's directory.
        data: `scenes`, or a folder with questions.jsonl and images.
        questions: size of the finite set of procedural questions.
        global_share: share of procedural questions that need no crop.
        steps: optimizer steps.
        batch_size: rows a step.
        optimizer: AdamW's settings.
        lora: adapters that train instead of the model's own parameters.
        compute: number types, attention backend, and what the backward pass recomputes.
        freeze_vision: keep the vision encoder as it is.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        seed: of the data's order.
        resume: go on from the last checkpoint in `out`.
        overwrite: start anew where `out` holds a run.
    """

    model: str = "nano"
    out: Path = Path("runs/sft")
    data: str = "scenes"
    questions: int = 512
    global_share: float = 0.3
    steps: int = 100
    batch_size: int = 32
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = LoRAConfig()
    compute: ComputeConfig = ComputeConfig()
    freeze_vision: bool = True
    checkpoint_every: int = 500
    seed: int = 0
    resume: bool = False
    overwrite: bool = False


class SFTData:
    """The finite set: overviews and reference rows are built once; batches are epochs of a seeded shuffle."""

    def __init__(self, questions: list[Question], rows, vision, batch_size: int, seed: int):
        """Builds the rows of all questions."""
        overviews = [rows.overview(q) for q in questions]
        self._prompts = rows.prompts(questions, overviews)
        self._replies = rows.reference_replies(questions, overviews)
        self._vision, self._batch_size, self._seed = vision, batch_size, seed

    def batch(self, step: int) -> RowBatch:
        """The batch of a step, from the seed and the step's number alone."""
        count = len(self._prompts.ids)
        places = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        order = {epoch: np.random.default_rng([self._seed, epoch]).permutation(count) for epoch in set(places // count)}
        index = np.array([order[place // count][place % count] for place in places])
        prompts, replies = (_take(x, index) for x in (self._prompts, self._replies))
        return row_batch(prompts, replies, self._vision)


def _take(tree, index):
    """Rows `index` of each array in a (nested) NamedTuple."""
    return type(tree)(*(_take(x, index) if isinstance(x, tuple) else x[index] for x in tree))


def load_sft_questions(config: SFTConfig) -> list[Question]:
    """The run's finite set of questions."""
    if config.data != "scenes":
        return read_questions(config.data)
    return scene_questions("sft", config.seed, 0, config.questions, config.global_share)


def sft(config: SFTConfig) -> Path:
    """Runs fine-tuning; returns the run's directory."""
    model, rows = load_model(config.model, config.compute)
    add_lora(model, config.lora, nnx.Rngs(config.seed))
    data = SFTData(load_sft_questions(config), rows, model.config.vision, config.batch_size, config.seed)
    optimizer = config.optimizer.build(config.steps)
    graph, state = init_state(model, optimizer, freeze_vision=config.freeze_vision)
    train_step = make_sft_step(graph, optimizer, rows.episode)

    open_run(config, model, rows)
    with Checkpoints(config.out) as checkpoints:
        if config.resume:
            state = checkpoints.restore(state)
        start = int(state.step)
        with MetricsLog(config.out, total=config.steps, label="sft", start=start) as log:
            for step in range(start, config.steps):
                state, metrics = train_step(state, data.batch(step))
                log.write(step + 1, finite(metrics, step + 1))
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                    checkpoints.save(step + 1, state)
    return config.out
