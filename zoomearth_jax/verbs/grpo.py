"""`zoomearth grpo`: group-relative policy optimisation teaches where to look, by the rewards of whole episodes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tyro
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.train import OptimizerConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import check_writable
from zoomearth_jax.hardware.flops import grpo_flops, rollout_flops, row_counts
from zoomearth_jax.models.family import Sizes
from zoomearth_jax.models.lora import add_lora, has_lora
from zoomearth_jax.models.sharding import constrain, local_rows, shard_batch
from zoomearth_jax.reports.panel import write_panel
from zoomearth_jax.rl.batches import GRPOBatch, RowBatch, row_batch, split_batch
from zoomearth_jax.rl.metrics import episode_table, rollout_metrics, zoom_alarm
from zoomearth_jax.rl.objective import disagreeing, group_advantages, kl_estimate
from zoomearth_jax.rl.rewards.custom_rewards import load_custom
from zoomearth_jax.rl.rewards.episodes import episode_rewards
from zoomearth_jax.rl.rollout.engine import RolloutEngine, Trajectories
from zoomearth_jax.rl.rollout.scored import play_scored, send_parts
from zoomearth_jax.rl.state import init_state, reference_policy
from zoomearth_jax.rl.steps import make_grpo_step, make_scorer
from zoomearth_jax.runs.checkpoints import Checkpoints, about_run, check_keeping
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.runs.monitor import open_monitor
from zoomearth_jax.runs.preemption import StopSignal
from zoomearth_jax.runs.sinks import check_sinks
from zoomearth_jax.runs.start import Run, broken_images, look_ahead, of_all_processes, on_mesh, open_loader
from zoomearth_jax.terminal.progress import say


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """Settings of a GRPO run.

    Attributes:
        model: the run or model directory to start from, which is also the reference policy.
        out: the run's directory.
        data: `scenes`, folders with questions.jsonl and images, or several of them.
        images: how image files become 8-bit RGB (bands, stretch, limit).
        mix: share of each of `data`, in any unit; equal shares by default.
        workers: processes that make prompts ahead, for large images; 0 makes them in threads of this one.
        global_share: share of procedural questions that need no crop.
        steps: rollouts.
        prompts: questions a step, over all devices.
        accumulate: microbatches that an update's questions are cut into, to save memory.
        compact: parts that the slots of a question and its episodes are cut into; the update computes only as many as the
            fullest question of the step fills. Each number of parts compiles once, when it comes up; 0 computes every slot.
        group: episodes a question (paper: 4).
        updates: passes over each rollout (mu).
        minibatches: optimizer steps a pass: a rollout's questions are cut into that many batches.
        temperature: of sampling, in both stages, and of the log-probabilities. (Top-k, top-p and a repetition penalty
            would draw from another distribution than the ratio is taken of.)
        rollout: who decides on a crop, what goes on from the first look, in how many parts a step is played.
        objective: advantages, ratio, clipping, KL and how tokens add up.
        reward: weights and shapes of the rewards; `--reward paper` and `--reward reference` take a named spec, which further
            settings change.
        optimizer: AdamW's settings.
        lora: adapters that train instead of the model's own parameters; the reference is the model without them.
        compute: number types, attention backend, and what the backward pass recomputes.
        mesh: how devices and processes share the work.
        layout: slots and views other than the model's own, such as `--layout.prompt-len 640` for long questions.
        freeze_vision: keep the vision encoder as it is; its tokens then come from the rollout.
        log: where metrics go beside metrics.jsonl: tensorboard, wandb, or both.
        panel_every: steps between panels of episodes in OUT/panels, as pictures and JSON; 0 for none.
        profile: write an XProf trace of three steps after warm-up to OUT/profile.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        keep: checkpoints to keep, the last ones.
        keep_best: checkpoints to keep beside them, those of the steps with the highest mean rewards.
        seed: of questions and samples.
        strict: end at the first image that can't be read, instead of naming it and going on with the next question.
        resume: go on from the last checkpoint in `out`.
        overwrite: start anew where `out` holds a run.
    """

    model: str = "runs/sft"
    out: Path = Path("runs/grpo")
    data: tuple[str, ...] = ("scenes",)
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    mix: tuple[float, ...] = ()
    workers: int = 0
    global_share: float = 0.25
    steps: int = 130
    prompts: int = 16
    accumulate: int = 1
    compact: int = 0
    group: int = 8
    updates: int = 1
    minibatches: int = 1
    temperature: float = 1.0
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    reward: RewardSpec = RewardSpec(region_alpha=0.5, region_unit="side")
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-4)
    lora: LoRAConfig = LoRAConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    layout: LayoutConfig = LayoutConfig()
    freeze_vision: bool = True
    log: tuple[str, ...] = ()
    panel_every: int = 50
    profile: bool = False
    checkpoint_every: int = 500
    keep: int = 2
    keep_best: int = 0
    seed: int = 0
    strict: bool = False
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self):
        if self.group < 2:
            raise UserError("grpo config: group must be at least 2, advantages compare samples of one question")
        if self.temperature <= 0:
            raise UserError("grpo config: temperature must be positive")
        if self.updates < 1 or self.minibatches < 1 or self.accumulate < 1:
            raise UserError("grpo config: updates, minibatches and accumulate must be positive")
        if self.rollout.turn_ids == "retokenised" and self.objective.mask != "reference":
            raise UserError(
                "grpo config: rollout.turn_ids retokenised needs objective.mask reference: nobody sampled those ids"
            )
        if self.compact < 0:
            raise UserError("grpo config: compact must be a number of parts, or 0 to compute every slot")
        if self.panel_every < 0:
            raise UserError("grpo config: panel_every must be a number of steps, or 0 for no panels")
        check_keeping("grpo", self)

    @property
    def optimizer_steps(self) -> int:
        """On each rollout."""
        return self.updates * self.minibatches


def learner_rows(
    played: Trajectories, sizes: Sizes, freeze_vision: bool, mesh: Mesh | None = None, compact: int = 0
) -> RowBatch:
    """What the learner trains on: the sampled ids, and with a frozen encoder the very visual tokens of the rollout."""
    tokens = (played.overview_features, played.picture_features) if freeze_vision else (None, None)
    return shard_batch(row_batch(played.prompts, played.replies, sizes, *tokens, parts=compact), mesh)


def sampled_kl(kind: str, played: Trajectories, ref_logp, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sampler's estimated KL against the reference in each episode: summed over its tokens, and a token, float32 [N x G].

    Args:
        ref_logp: of the reference, [N x G, slots].
        slots: those that the policy writes.
    """
    mask = played.replies.target[:, slots]
    estimate = np.asarray(kl_estimate(kind, np.where(mask, played.logprobs, 0.0), np.where(mask, ref_logp, 0.0)))
    total = (estimate * mask).sum(axis=1)
    return total, total / np.maximum(mask.sum(axis=1), 1)


@functools.partial(jax.jit, static_argnames="parts")
def minibatches(batch: GRPOBatch, parts: int) -> list[GRPOBatch]:
    """A rollout cut into batches of whole groups, every row on its device."""
    cut = split_batch(batch, len(batch.rows.prompt_ids), parts)

    def part(i):
        return jax.tree.map(lambda x: constrain(x[i], "batch", *[None] * (x.ndim - 2)), cut)

    return [part(i) for i in range(parts)]


def update(train_step, state, reference, batches: Sequence[GRPOBatch], updates: int):
    """The optimizer steps on one rollout: `updates` passes over its batches.

    Returns:
        the state, and metrics: means over the last pass (a step that is not finite stands for all, so that it is seen), and
        the gap to the sampler before the first step, of its batch.
    """
    metrics = []
    for batch in [*batches] * updates:
        state, one = train_step(state, reference, batch)
        metrics.append(one)
    metrics = jax.device_get(metrics)
    gap = {name: x for name, x in metrics[0].items() if name.startswith("sampler_gap")}
    broken = [one for one in metrics if not np.isfinite(one["loss"] + one["grad_norm"] + one["update_ratio"])]
    last = broken[:1] or metrics[-len(batches) :]
    merge = {name: np.max if name.endswith("_max") else np.mean for name in metrics[0]}
    return state, {name: merge[name]([one[name] for one in last]) for name in merge} | gap


def grpo(config: GRPOConfig) -> Path:
    """Runs GRPO; returns the run's directory."""
    check_sinks(config.log)
    check_writable(config.out, directory=True)
    load_custom(config.reward)
    with on_mesh(config.mesh, config.model) as mesh:
        if jax.process_index() == 0:
            say(f"reward {config.reward.describe()}")
        return _grpo(config, mesh)


def _grpo(config: GRPOConfig, mesh: Mesh) -> Path:
    model, rows = load_model(config.model, config.compute, mesh, config.layout)
    add_lora(model, config.lora, nnx.Rngs(config.seed))
    objective, total = config.objective, config.steps * config.optimizer_steps
    optimizer = config.optimizer.build(total)
    graph, state = init_state(model, optimizer, freeze_vision=config.freeze_vision, mesh=mesh)
    reference = reference_policy(state, config.compute.dtype) if objective.kl_weight else None
    if config.rollout.crop != "model":
        rows = rows.replaced(crop=config.rollout.crop)
    engine = RolloutEngine(model, rows, mesh, config.mesh.gather, config.rollout)
    send = functools.partial(send_parts, engine, parts=config.rollout.batches)
    sampling = SamplingConfig(temperature=config.temperature)
    scoring = {
        "temperature": config.temperature,
        "banned_ids": rows.banned_ids,
        "objective": objective,
        "accumulate": config.accumulate,
    }
    train_step = make_grpo_step(graph, optimizer, rows.layout, **scoring)
    score = make_scorer(graph, rows.layout, **scoring)
    score_old = objective.old_by_trainer and config.optimizer_steps > 1  # in a first step the policy is the old one
    lr = config.optimizer.rates(total)
    frozen, adapted = "vision" not in state.trainable, has_lora(model)

    def reward(questions, played):
        return episode_rewards(config.reward, questions, played, rows)

    def flops(counts):
        passes = {"kl": objective.kl_in_loss, "updates": config.updates, "scorings": score_old + objective.kl_in_reward}
        update = grpo_flops(model.config, counts, freeze_vision=frozen, lora=adapted, **passes)
        return rollout_flops(model.config, counts) + update

    parts = {"minibatches": config.minibatches, "rollout_batches": config.rollout.batches}
    loader = open_loader(config, "grpo", rows.prompts, config.prompts, mesh=mesh, check=rows.check_prompts, **parts)
    about = about_run(config, loader.digests, reference)
    with (
        StopSignal() as stop,
        Run(config, model, rows, loader) as run,
        loader,
        Checkpoints(config.out, config.keep, config.keep_best, about) as checkpoints,
    ):
        if config.resume:
            state = checkpoints.restore(state)
        done = start = int(state.step) // config.optimizer_steps
        shown = ("reward_total", "reward_answer", "reward_iou", "zoom_rate")
        with open_monitor(config, "grpo", start, mesh, shown, config.compact > 0) as monitor:
            for step, looks in monitor.steps(look_ahead(loader.batches(start, config.steps), send)):
                if stop.requested():
                    break
                with monitor.phase("rollout"):
                    questions, key = loader.questions(step), jax.random.fold_in(jax.random.key(config.seed), step)
                    played, rewards = play_scored(
                        engine, state.params, questions, looks, key, sampling=sampling, group=config.group, score=reward
                    )
                    on_devices = learner_rows(played, model.config, config.freeze_vision, mesh, config.compact)
                    more, total_reward = {}, rewards["total"]
                    if objective.kl_in_reward:
                        ref_logp = local_rows(score(reference, state.frozen, on_devices))
                        kl_sum, more["kl"] = sampled_kl(objective.kl, played, ref_logp, rows.layout.written())
                        total_reward = total_reward - objective.kl_weight * kl_sum
                    advantages = group_advantages(total_reward, config.group, objective.advantage)
                    table = episode_table(questions, played, rewards, advantages, rows.layout)
                    table = of_all_processes(table | more)
                if stop.requested():  # the resumed run plays the same episodes again
                    break
                with monitor.phase("update"):
                    kept = disagreeing(rewards["total"], config.group) if objective.flat_groups == "drop" else None
                    batch = shard_batch(GRPOBatch(on_devices, played.logprobs, advantages, kept), mesh)
                    if score_old:
                        batch = batch._replace(old_logp=score(state.trainable, state.frozen, batch.rows))
                    batches = [batch] if config.minibatches == 1 else minibatches(batch, config.minibatches)
                    state, metrics = update(train_step, state, reference, batches, config.updates)
                run.begin()
                monitor.stop_if_broken(step + 1, metrics, batch, state)
                metrics |= {"lr": lr[(step + 1) * config.optimizer_steps - 1]} | rollout_metrics(table, config.group)
                metrics["broken_images"] = broken_images(loader, step, mesh)
                counts = row_counts(played.prompts, played.replies)
                monitor.log(step + 1, metrics, counts, flops(counts), {"zoom_rate": zoom_alarm(table)})
                if config.panel_every and (step + 1) % config.panel_every == 0 and jax.process_index() == 0:
                    scores = rewards | {"advantage": advantages}
                    monitor.picture(step + 1, write_panel(config.out / "panels", step + 1, questions, played, scores))
                done = step + 1
                if done % config.checkpoint_every == 0 or done == config.steps:
                    checkpoints.save(done, state, score=metrics["reward_total"])
        if done < config.steps:
            run.begin()
            checkpoints.save(done, state)
            stop.after(done)
    return config.out
