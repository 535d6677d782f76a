"""`zoomearth grpo`: group-relative policy optimisation teaches where to look, by the rewards of whole episodes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.checkpoint import Checkpoints, about_run, check_keeping
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.train import OptimizerConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.flops import grpo_flops, rollout_flops, row_counts
from zoomearth_jax.model_io import load_model
from zoomearth_jax.models.lora import add_lora, has_lora
from zoomearth_jax.models.sharding import shard_batch
from zoomearth_jax.monitor import open_monitor
from zoomearth_jax.panel import write_panel
from zoomearth_jax.preemption import StopSignal
from zoomearth_jax.rl.learner import GRPOBatch, init_state, make_grpo_step, reference_policy, row_batch
from zoomearth_jax.rl.metrics import episode_table, rollout_metrics, zoom_alarm
from zoomearth_jax.rl.objective import group_advantages
from zoomearth_jax.rl.rewards import RewardSpec, episode_rewards
from zoomearth_jax.rl.rollout import RolloutEngine, Trajectories
from zoomearth_jax.runs import look_ahead, of_all_processes, on_mesh, open_loader, open_run
from zoomearth_jax.sinks import check_sinks


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
        prompts: questions a step, over all devices.
        accumulate: microbatches that an update's questions are cut into, to save memory.
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
        mesh: how devices and processes share the work.
        freeze_vision: keep the vision encoder as it is; its tokens then come from the rollout.
        log: where metrics go beside metrics.jsonl: tensorboard, wandb, or both.
        panel_every: steps between panels of episodes in OUT/panels, as pictures and JSON; 0 for none.
        profile: write an XProf trace of three steps after warm-up to OUT/profile.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        keep: checkpoints to keep, the last ones.
        keep_best: checkpoints to keep beside them, those of the steps with the highest mean rewards.
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
    accumulate: int = 1
    group: int = 8
    updates: int = 1
    temperature: float = 1.0
    clip: float = 0.2
    kl_weight: float = 0.04
    reward: RewardSpec = RewardSpec(region_alpha=0.5, region_unit="side")
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-4)
    lora: LoRAConfig = LoRAConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    freeze_vision: bool = True
    log: tuple[str, ...] = ()
    panel_every: int = 50
    profile: bool = False
    checkpoint_every: int = 500
    keep: int = 2
    keep_best: int = 0
    seed: int = 0
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self):
        if self.group < 2:
            raise UserError("grpo config: group must be at least 2, advantages compare samples of one question")
        if self.temperature <= 0:
            raise UserError("grpo config: temperature must be positive")
        if self.updates < 1 or self.accumulate < 1:
            raise UserError("grpo config: updates and accumulate must be positive")
        if self.panel_every < 0:
            raise UserError("grpo config: panel_every must be a number of steps, or 0 for no panels")
        check_keeping("grpo", self)


def learner_batch(
    played: Trajectories, advantages: np.ndarray, vision, freeze_vision: bool, mesh: Mesh | None = None
) -> GRPOBatch:
    """What the learner trains on: the sampled ids, and with a frozen encoder the very visual tokens of the rollout."""
    tokens = (played.overview_features, played.crop_features) if freeze_vision else (None, None)
    rows = row_batch(played.prompts, played.replies, vision, *tokens)
    return shard_batch(GRPOBatch(rows, played.logprobs, advantages), mesh)


def update(train_step, state, reference, batch: GRPOBatch, updates: int):
    """The optimizer steps on one rollout; metrics are the last step's, the gap to the sampler that before the first."""
    state, metrics = train_step(state, reference, batch)
    gap = {name: x for name, x in metrics.items() if name.startswith("sampler_gap")}
    for _ in range(updates - 1):
        state, metrics = train_step(state, reference, batch)
    return state, jax.device_get(metrics | gap)


def grpo(config: GRPOConfig) -> Path:
    """Runs GRPO; returns the run's directory."""
    check_sinks(config.log)
    with on_mesh(config.mesh, config.model) as mesh:
        return _grpo(config, mesh)


def _grpo(config: GRPOConfig, mesh: Mesh) -> Path:
    model, rows = load_model(config.model, config.compute, mesh)
    add_lora(model, config.lora, nnx.Rngs(config.seed))
    optimizer = config.optimizer.build(config.steps * config.updates)
    graph, state = init_state(model, optimizer, freeze_vision=config.freeze_vision, mesh=mesh)
    reference = reference_policy(state, config.compute.dtype) if config.kl_weight else None
    engine = RolloutEngine(model, rows, mesh, config.mesh.gather)
    sampling = SamplingConfig(temperature=config.temperature)
    train_step = make_grpo_step(
        graph,
        optimizer,
        rows.episode,
        temperature=config.temperature,
        banned_ids=rows.banned_ids,
        clip=config.clip,
        kl_weight=config.kl_weight,
        accumulate=config.accumulate,
    )
    lr = config.optimizer.rates(config.steps * config.updates)
    frozen, kl, adapted = "vision" not in state.trainable, config.kl_weight > 0, has_lora(model)

    def flops(counts):
        update = {"freeze_vision": frozen, "kl": kl, "lora": adapted, "updates": config.updates}
        return rollout_flops(model.config, counts) + grpo_flops(model.config, counts, **update)

    loader = open_loader(config, "grpo", rows.prompts, config.prompts, mesh=mesh)
    open_run(config, model, rows, loader)
    about = about_run(config, loader.digests, reference)
    with StopSignal() as stop, loader, Checkpoints(config.out, config.keep, config.keep_best, about) as checkpoints:
        if config.resume:
            state = checkpoints.restore(state)
        done = start = int(state.step) // config.updates
        shown = ("reward_total", "reward_answer", "reward_iou", "zoom_rate")
        with open_monitor(config, "grpo", start, mesh, shown) as monitor:
            for step, look in monitor.steps(look_ahead(loader.batches(start, config.steps), engine.send)):
                if stop.requested():
                    break
                with monitor.phase("rollout"):
                    questions, key = loader.questions(step), jax.random.fold_in(jax.random.key(config.seed), step)
                    played = engine(state.params, questions, key, sampling=sampling, group=config.group, look=look)
                    rewards = episode_rewards(config.reward, questions, played, rows)
                    advantages = group_advantages(rewards["total"], config.group)
                    table = of_all_processes(episode_table(questions, played, rewards, advantages, rows.episode))
                if stop.requested():  # the resumed run plays the same episodes again
                    break
                with monitor.phase("update"):
                    batch = learner_batch(played, advantages, model.config.vision, config.freeze_vision, mesh)
                    state, metrics = update(train_step, state, reference, batch, config.updates)
                monitor.stop_if_broken(step + 1, metrics, batch, state)
                metrics |= {"lr": lr[(step + 1) * config.updates - 1]} | rollout_metrics(table, config.group)
                counts = row_counts(played.prompts, played.replies)
                monitor.log(step + 1, metrics, counts, flops(counts), {"zoom_rate": zoom_alarm(table)})
                if config.panel_every and (step + 1) % config.panel_every == 0 and jax.process_index() == 0:
                    scores = rewards | {"advantage": advantages}
                    monitor.picture(step + 1, write_panel(config.out / "panels", step + 1, questions, played, scores))
                done = step + 1
                if done % config.checkpoint_every == 0 or done == config.steps:
                    checkpoints.save(done, state, score=metrics["reward_total"])
        if done < config.steps:
            checkpoints.save(done, state)
            stop.after(done)
    return config.out
