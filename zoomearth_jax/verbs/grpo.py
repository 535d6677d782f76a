"""`zoomearth grpo`: group-relative policy optimisation teaches where to look, by the rewards of whole episodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.validation import Validation
from zoomearth_jax.files import check_writable
from zoomearth_jax.hardware.flops import grpo_flops, joined_counts, rollout_flops, row_counts
from zoomearth_jax.models.sharding import process_share
from zoomearth_jax.reports.panel import write_panel
from zoomearth_jax.reports.rollouts import RolloutDump
from zoomearth_jax.rl.grpo import GRPO, Asked, Played
from zoomearth_jax.rl.metrics import episode_table, rollout_metrics, zoom_alarm
from zoomearth_jax.rl.rewards.custom_rewards import load_custom
from zoomearth_jax.rl.rewards.judge import Judge
from zoomearth_jax.runs.checkpoints import Checkpoints, about_run
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.runs.monitor import open_monitor
from zoomearth_jax.runs.pass_rates import PassRates
from zoomearth_jax.runs.preemption import StopSignal
from zoomearth_jax.runs.sinks import check_sinks
from zoomearth_jax.runs.start import (
    Peekable,
    Run,
    agreed,
    broken_images,
    lay_out_sampler,
    look_ahead,
    of_all_processes,
    on_mesh,
    open_loader,
)
from zoomearth_jax.terminal.progress import say

SHOWN = ("reward_total", "reward_answer", "reward_iou", "zoom_rate")  # beside the progress bar


def grpo(config: GRPOConfig) -> Path:
    """Runs GRPO; returns the run's directory."""
    check_sinks(config.log)
    check_writable(config.out, directory=True)
    load_custom(config.reward)
    with on_mesh(config.mesh, config.model) as mesh:
        if jax.process_index() == 0:
            say(f"reward {config.reward.describe()}")
        with _open_judge(config, mesh) as judge:
            return _grpo(config, mesh, judge)


@contextmanager
def _open_judge(config: GRPOConfig, mesh: Mesh) -> Iterator[Judge | None]:
    """The judge of the reward spec, once it has answered; None without one."""
    if "judge" not in config.reward.weights:
        yield None
        return
    if process_share(mesh)[1] < jax.process_count():
        raise UserError(
            "reward.judge: processes that share their questions could get different scores; keep tensor groups within a process"
        )
    with Judge(config.reward, config.judge, config.out / "judge", jax.process_index(), config.resume) as judge:
        agreed(judge.check)
        yield judge


def _grpo(config: GRPOConfig, mesh: Mesh, judge: Judge | None) -> Path:
    model, rows = load_model(config.model, config.compute, mesh, config.layout)
    layout = config.rollout.of(rows.episode).layout(rows.layout.merged_px)
    slots = layout.prompt_len + layout.reply_len
    at_once = config.prompts // config.rollout.batches
    int8 = config.rollout.weights == "int8"
    sampler = lay_out_sampler(config.mesh, mesh, model, slots, at_once, config.group, int8=int8)
    training = GRPO(config, model, rows, mesh, sampler, judge)
    rows, per_rollout = training.rows, config.optimizer_steps
    lr = config.optimizer.rates(config.steps * per_rollout)
    passes = {"kl": config.objective.kl_in_loss, "updates": config.updates, "scorings": training.scorings}
    passes["distills"] = config.objective.distill_weight > 0

    def flops(played, updated):
        how: dict[str, Any] = {"freeze_vision": training.freezes_vision, "lora": training.adapted, **passes}
        return rollout_flops(model.config, played) + grpo_flops(model.config, updated, **how)

    def further(step, number):
        looks = training.send(loader.refill(step, number))
        return Asked(loader.questions(step, number), looks, step, number)

    parts: dict[str, Any] = {"minibatches": config.minibatches, "rollout_batches": config.rollout.batches}
    rates, leaves_out = PassRates(config), config.curriculum.active
    parts |= {
        "looks": rows.layout.num_pictures,
        "refills": config.refill,
        "passed_over": rates.passed_over if leaves_out else None,
    }
    loader = open_loader(config, "grpo", rows.prompts, config.prompts, mesh=mesh, check=rows.check_prompts, **parts)
    validation = Validation(config, training.engine, mesh, config.prompts * config.group // config.rollout.batches)
    about = about_run(config, loader.digests, training.reference)
    with (
        StopSignal() as stop,
        Run(config, model, rows, loader) as run,
        loader,
        rates,
        Checkpoints(config.out, config.keep, config.keep_best, about, config.best_by) as checkpoints,
    ):
        if config.resume:
            training.state = checkpoints.restore(training.state)
        done = start = int(training.state.step) // per_rollout
        rates.open(start, loader.digests)
        before = validation.before_training(training.state.params, start)
        with (
            RolloutDump(config.out, config.dump, config.dump_thumbnails, start, mesh) as dump,
            open_monitor(config, "grpo", start, mesh, SHOWN, config.compact > 0, before) as monitor,
        ):
            batches = Peekable(look_ahead(loader.batches(start, config.steps), training.send))
            upcoming: Played | None = None  # the episodes of this step, where they were played ahead
            for step, looks in monitor.steps(batches):
                if stop.requested():
                    break
                with monitor.phase("rollout"):
                    played = upcoming or training.play(Asked(loader.questions(step), looks, step))
                    played = training.refill(played, partial(further, step)) if config.refill else played
                if stop.requested():  # the resumed run plays the same episodes again
                    break
                done, following = step + 1, None
                if config.plays_ahead(done):
                    with monitor.phase("data_wait"):
                        next_looks = batches.peek()
                    following = Asked(loader.questions(done), next_looks, done)
                with monitor.phase("rollout" if following else "update"):
                    updated, upcoming = training.update(played, following)
                own = episode_table(played.questions, played.episodes, played.rewards, updated.advantages, rows.layout)
                own |= updated.kl
                table = of_all_processes(own)
                with monitor.phase("update"):
                    metrics = updated.metrics()
                run.begin()
                if judge:
                    judge.save()
                monitor.stop_if_broken(done, metrics, updated.batch, training.state)
                metrics |= {"lr": lr[done * per_rollout - 1]} | rollout_metrics(table, config.group)
                metrics["broken_images"] = broken_images(loader, step, mesh)
                places = [place for number in range(len(played.rounds)) for place in loader.taken(step, number)]
                asked = rates.note(done, places, played.correct(config.group), config.group)
                metrics |= {
                    "pass_rate": asked.mean(),
                    "played_groups": len(asked) * process_share(mesh)[1] // jax.process_count(),
                    "refill_rounds": len(played.rounds) - 1,
                }
                metrics |= {"left_out": loader.left_out(step)} if leaves_out else {}
                if validation.due(done):
                    with monitor.phase("validation", may_compile=True):
                        metrics |= validation(training.state.params, done)
                counts = joined_counts([row_counts(one.prompts, one.replies) for one in played.rounds])
                cost = flops(counts, row_counts(played.episodes.prompts, played.episodes.replies))
                monitor.log(done, metrics, counts, cost, {"zoom_rate": zoom_alarm(table)})
                if config.panel_every and done % config.panel_every == 0 and jax.process_index() == 0:
                    scores = {**played.rewards, "advantage": updated.advantages}
                    picture = write_panel(config.out / "panels", done, played.questions, played.episodes, scores)
                    monitor.picture(done, picture)
                if dump.due(done):
                    dump.add(done, played.questions, played.episodes, own)
                if done % config.checkpoint_every == 0 or done == config.steps:
                    checkpoints.save(done, training.state, score=config.score(metrics))
        if done < config.steps:
            run.begin()
            if judge:
                judge.save()
            checkpoints.save(done, training.state)
            stop.after(done)
    return config.out
