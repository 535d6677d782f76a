"""`zoomearth sft`: supervised fine-tuning teaches the protocol: think, name a box, look, answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.training import SFTConfig
from zoomearth_jax.data_pipeline.rows.packing import pack
from zoomearth_jax.evaluation.validation import Validation
from zoomearth_jax.files import check_writable
from zoomearth_jax.hardware.flops import row_counts, sft_flops
from zoomearth_jax.models.lora import add_lora, has_lora
from zoomearth_jax.models.sharding import process_share, shard_batch
from zoomearth_jax.rl.batches import as_the_fullest, packed_batch, row_batch
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.rl.state import init_state
from zoomearth_jax.rl.steps import make_sft_step
from zoomearth_jax.runs.checkpoints import Checkpoints, about_run
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.runs.monitor import open_monitor
from zoomearth_jax.runs.preemption import StopSignal
from zoomearth_jax.runs.sinks import check_sinks
from zoomearth_jax.runs.start import Run, broken_images, lay_out_sampler, look_ahead, on_mesh, open_loader


def sft(config: SFTConfig) -> Path:
    """Runs fine-tuning; returns the run's directory."""
    check_sinks(config.log)
    check_writable(config.out, directory=True)
    with on_mesh(config.mesh, config.model) as mesh:
        return _sft(config, mesh)


def _sft(config: SFTConfig, mesh: Mesh) -> Path:
    model, rows = load_model(config.model, config.compute, mesh, config.layout)
    add_lora(model, config.lora, nnx.Rngs(config.seed))
    slots = rows.layout.prompt_len + rows.layout.reply_len
    sampler = lay_out_sampler(config.mesh, mesh, model, slots, config.validate.batch_size or config.batch_size)
    engine = RolloutEngine(model, rows, mesh, config.mesh.gather, sampler=sampler)
    optimizer = config.optimizer.build(config.steps)
    graph, state = init_state(model, optimizer, freeze_vision=config.freeze_vision, mesh=mesh)
    train_step = make_sft_step(graph, optimizer, rows.layout, config.accumulate)
    lr, adapted, frozen = config.optimizer.rates(config.steps), has_lora(model), "vision" not in state.trainable

    devices = mesh.shape["data"] * mesh.shape["fsdp"] // process_share(mesh)[1]  # that hold rows of this process's own

    def prepare(batch):
        (prompts, replies), sizes = batch, model.config
        counts = row_counts(prompts, replies)
        if not config.pack_len:
            return shard_batch(row_batch(prompts, replies, sizes), mesh), counts
        packed = packed_batch(pack(prompts, replies, rows.layout.view_tokens, config.pack_len, devices), sizes)
        return packed._replace(views=shard_batch(packed.views, mesh)), counts

    def send(batch):
        return shard_batch(as_the_fullest(batch) if config.pack_len else batch, mesh)

    looks = rows.layout.num_pictures
    how: dict[str, Any] = {"mesh": mesh, "check": rows.check_supervised, "looks": looks}
    loader = open_loader(config, "sft", rows.supervised, config.batch_size, config.questions, **how)
    validation = Validation(config, engine, mesh, config.batch_size)
    about = about_run(config, loader.digests)
    with (
        StopSignal() as stop,
        Run(config, model, rows, loader) as run,
        loader,
        Checkpoints(config.out, config.keep, config.keep_best, about, config.best_by) as checkpoints,
    ):
        if config.resume:
            state = checkpoints.restore(state)
        done = start = int(state.step)
        before = validation.before_training(state.params, start)
        with open_monitor(config, "sft", start, mesh, shapes_vary=config.pack_len > 0, before=before) as monitor:
            batches = look_ahead(loader.batches(start, config.steps), prepare)
            for step, (batch, counts) in monitor.steps(batches):
                if stop.requested():
                    break
                with monitor.phase("update"):
                    batch = send(batch)
                    state, metrics = train_step(state, batch)
                    metrics = jax.device_get(metrics) | {"lr": lr[step]}
                run.begin()
                monitor.stop_if_broken(step + 1, metrics, batch, state)
                metrics["broken_images"] = broken_images(loader, step, mesh)
                flops = sft_flops(model.config, counts, freeze_vision=frozen, lora=adapted)
                done = step + 1
                if validation.due(done):
                    with monitor.phase("validation", may_compile=True):
                        metrics |= validation(state.params, done)
                monitor.log(done, metrics, counts, flops)
                if done % config.checkpoint_every == 0 or done == config.steps:
                    checkpoints.save(done, state, score=config.score(metrics))
        if done < config.steps:
            run.begin()
            checkpoints.save(done, state)
            stop.after(done)
    return config.out
