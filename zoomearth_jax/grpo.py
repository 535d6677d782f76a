"""`zoomearth grpo`: group-relative policy optimisation teaches where to look, by the rewards of whole episodes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoomearth_jax.checkpoint import Checkpoints
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.train import OptimizerConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.metrics import MetricsLog
from zoomearth_jax.model_io import load_model
from zoomearth_jax.models.lora import add_lora
from zoomearth_jax.rl.learner import GRPOBatch, init_state, make_grpo_step, row_batch
from zoomearth_jax.rl.objective import group_advantages
from zoomearth_jax.rl.rewards import RewardSpec, episode_rewards
from zoomearth_jax.rl.rollout import RolloutEngine, Trajectories
from zoomearth_jax.runs import finite, look_ahead, open_loader, open_run


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """Settings of a GRPO run.

    Attributes:
        model: the run or model directory to start from, which is also the reference policy.
        out: the run's directory.
        data: `scenes`, folders with questions.jsonl and images, or several of them.
        mix: share of each of `data`, in any unit; equal shares by default.
        workers: processes that make prompts ahead, for large images; 0 makes them in threads of this one.
        global_share: share of procedural questions that need no crop.
        steps: rollouts.
        prompts: questions a step.
        group: episodes a question (paper: 4).
        updates: optimizer steps on each rollout (mu).
        temperature: of sampling, in both stages, and of the log-probabilities. (Top-k, top-p and a repetition penalty
            would draw from another distribution than the ratio is taken of.)
        clip: epsilon of the clipped ratio (paper: 0.2).
        kl_weight: of the k3 KL against the reference (paper: 0.04); 0 leaves the reference out.
        reward: weights and shapes of the rewards.
        optimizer: AdamW's settings.
        lora: adapters that train instead of the model's own parameters; the reference is the model without them.
        compute: number types, attention backend, and what the backward pass recomputes.
        freeze_vision: keep the vision encoder as it is; its tokens then come from the rollout.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        seed: of questions and samples.
        resume: go on from the last checkpoint in `out`.
        overwrite: start anew where `out` holds a run.
    """

    model: str = "runs/sft"
    out: Path = Path("runs/grpo")
    data: tuple[str, ...] = ("scenes",)
    mix: tuple[float, ...] = ()
    workers: int = 0
    global_share: float = 0.25
    steps: int = 130
    prompts: int = 16
    group: int = 8
    updates: int = 1
    temperature: float = 1.0
    clip: float = 0.2
    kl_weight: float = 0.04
    reward: RewardSpec = RewardSpec(region_alpha=0.5, region_unit="side")
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-4)
    lora: LoRAConfig = LoRAConfig()
    compute: ComputeConfig = ComputeConfig()
    freeze_vision: bool = True
    checkpoint_every: int = 500
    seed: int = 0
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self):
        if self.group < 2:
            raise UserError("grpo config: group must be at least 2, advantages compare samples of one question")
        if self.temperature <= 0:
            raise UserError("grpo config: temperature must be positive")


def learner_batch(played: Trajectories, advantages: np.ndarray, vision, freeze_vision: bool) -> GRPOBatch:
    """What the learner trains on: the sampled ids, and with a frozen encoder the very visual tokens of the rollout."""
    tokens = (played.overview_features, played.crop_features) if freeze_vision else (None, None)
    return GRPOBatch(row_batch(played.prompts, played.replies, vision, *tokens), played.logprobs, advantages)


def rollout_metrics(played: Trajectories, rewards: dict[str, np.ndarray], group: int) -> dict[str, float]:
    """Means of what happened in a rollout."""
    episodes = played.episodes
    metrics = {f"reward_{name}": values.mean() for name, values in rewards.items()}
    grouped = rewards["total"].reshape(-1, group)
    return metrics | {
        "reward_std": rewards["total"].std(),
        "flat_groups": float((grouped.std(axis=1) < 1e-6).mean()),
        "zoom_rate": np.mean([e.zoomed for e in episodes]),
        "parse_failure": np.mean([e.box_reason not in ("", "absent") for e in episodes]),
        "no_answer": np.mean([e.answer is None for e in episodes]),
        "truncated": np.mean([e.truncated for e in episodes]),
        "tokens": played.replies.target.sum(axis=1).mean(),
    }


def grpo(config: GRPOConfig) -> Path:
    """Runs GRPO; returns the run's directory."""
    model, rows = load_model(config.model, config.compute)
    add_lora(model, config.lora, nnx.Rngs(config.seed))
    optimizer = config.optimizer.build(config.steps * config.updates)
    graph, state = init_state(model, optimizer, freeze_vision=config.freeze_vision)
    reference = jax.tree.map(jnp.copy, state.trainable) if config.kl_weight else None
    engine, sampling = RolloutEngine(model, rows), SamplingConfig(temperature=config.temperature)
    train_step = make_grpo_step(
        graph,
        optimizer,
        rows.episode,
        temperature=config.temperature,
        banned_ids=rows.banned_ids,
        clip=config.clip,
        kl_weight=config.kl_weight,
    )

    loader = open_loader(config, "grpo", rows.prompts, config.prompts)
    open_run(config, model, rows, loader)
    with loader, Checkpoints(config.out) as checkpoints:
        if config.resume:
            state = checkpoints.restore(state)
        start = int(state.step) // config.updates
        shown = ("reward_total", "reward_answer", "reward_iou", "zoom_rate")
        with MetricsLog(config.out, total=config.steps, label="grpo", start=start, shown=shown) as log:
            looks = look_ahead(loader.batches(start, config.steps), engine.send)
            for step, look in enumerate(looks, start):
                questions = loader.questions(step)
                key = jax.random.fold_in(jax.random.key(config.seed), step)
                played = engine(state.params, questions, key, sampling=sampling, group=config.group, look=look)
                rewards = episode_rewards(config.reward, questions, played, rows)
                advantages = group_advantages(rewards["total"], config.group)
                batch = learner_batch(played, advantages, model.config.vision, config.freeze_vision)
                for _ in range(config.updates):
                    state, metrics = train_step(state, reference, batch)
                log.write(step + 1, finite(metrics | rollout_metrics(played, rewards, config.group), step + 1))
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                    checkpoints.save(step + 1, state)
    return config.out
