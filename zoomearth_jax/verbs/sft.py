"""`zoomearth sft`: supervised fine-tuning teaches the protocol: think, name a box, look, answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import tyro
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.train import OptimizerConfig
from zoomearth_jax.data_pipeline.rows.packing import pack
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import check_writable
from zoomearth_jax.hardware.flops import row_counts, sft_flops
from zoomearth_jax.models.lora import add_lora, has_lora
from zoomearth_jax.models.sharding import shard_batch
from zoomearth_jax.rl.batches import packed_batch, row_batch
from zoomearth_jax.rl.state import init_state
from zoomearth_jax.rl.steps import make_sft_step
from zoomearth_jax.runs.checkpoints import Checkpoints, about_run, check_keeping
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.runs.monitor import open_monitor
from zoomearth_jax.runs.preemption import StopSignal
from zoomearth_jax.runs.sinks import check_sinks
from zoomearth_jax.runs.start import Run, broken_images, look_ahead, on_mesh, open_loader


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Settings of a fine-tuning run.

    Attributes:
        model: `nano`, a model directory or a run to start from.
        out: the run's directory.
        data: `scenes`, folders with questions.jsonl and images, or several of them.
        images: how image files become 8-bit RGB (bands, stretch, limit).
        mix: share of each of `data`, in any unit; equal shares by default.
        workers: processes that make rows ahead, for large images; 0 makes them in threads of this one.
        questions: size of the finite set of procedural questions.
        global_share: share of procedural questions that need no crop.
        steps: optimizer steps.
        batch_size: samples a step, over all devices.
        accumulate: microbatches that a step's samples are cut into, to save memory.
        pack_len: tokens of a packed row, which holds several samples; 0 for one sample a row, in fixed slots. The loss is
            the same.
        optimizer: AdamW's settings.
        lora: adapters that train instead of the model's own parameters.
        compute: number types, attention backend, and what the backward pass recomputes.
        mesh: how devices and processes share the work.
        layout: slots and views other than the model's own, such as `--layout.prompt-len 640` for long questions.
        freeze_vision: keep the vision encoder as it is.
        log: where metrics go beside metrics.jsonl: tensorboard, wandb, or both.
        profile: write an XProf trace of three steps after warm-up to OUT/profile.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        keep: checkpoints to keep, the last ones.
        keep_best: checkpoints to keep beside them, those of the steps with the lowest losses.
        seed: of the data's order.
        strict: end at the first image that can't be read, instead of naming it and going on with the next question.
        resume: go on from the last checkpoint in `out`.
        overwrite: start anew where `out` holds a run.
    """

    model: str = "nano"
    out: Path = Path("runs/sft")
    data: tuple[str, ...] = ("scenes",)
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    mix: tuple[float, ...] = ()
    workers: int = 0
    questions: int = 512
    global_share: float = 0.3
    steps: int = 100
    batch_size: int = 32
    accumulate: int = 1
    pack_len: int = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = LoRAConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    layout: LayoutConfig = LayoutConfig()
    freeze_vision: bool = True
    log: tuple[str, ...] = ()
    profile: bool = False
    checkpoint_every: int = 500
    keep: int = 2
    keep_best: int = 0
    seed: int = 0
    strict: bool = False
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self):
        if self.pack_len < 0:
            raise UserError("sft config: pack_len must be a number of tokens, or 0 for fixed rows")
        if self.accumulate < 1 or (self.accumulate > 1 and self.pack_len):
            raise UserError("sft config: accumulate must be positive, and 1 for packed rows")
        check_keeping("sft", self)


def sft(config: SFTConfig) -> Path:
    """Runs fine-tuning; returns the run's directory."""
    check_sinks(config.log)
    check_writable(config.out, directory=True)
    with on_mesh(config.mesh, config.model) as mesh:
        return _sft(config, mesh)


def _sft(config: SFTConfig, mesh: Mesh) -> Path:
    if config.pack_len and jax.process_count() > 1:
        raise UserError("sft config: packed rows are for one process; leave pack_len out")
    model, rows = load_model(config.model, config.compute, mesh, config.layout)
    add_lora(model, config.lora, nnx.Rngs(config.seed))
    optimizer = config.optimizer.build(config.steps)
    graph, state = init_state(model, optimizer, freeze_vision=config.freeze_vision, mesh=mesh)
    train_step = make_sft_step(graph, optimizer, rows.layout, config.accumulate)
    lr, adapted, frozen = config.optimizer.rates(config.steps), has_lora(model), "vision" not in state.trainable

    def prepare(batch):
        vision, counts = model.config.vision, row_counts(*batch)
        if not config.pack_len:
            return shard_batch(row_batch(*batch, vision), mesh), counts
        packed = pack(*batch, rows.layout.view_tokens, config.pack_len)
        return shard_batch(packed_batch(packed, vision), mesh), counts

    loader = open_loader(
        config, "sft", rows.supervised, config.batch_size, config.questions, mesh, check=rows.check_supervised
    )
    about = about_run(config, loader.digests)
    with (
        StopSignal() as stop,
        Run(config, model, rows, loader) as run,
        loader,
        Checkpoints(config.out, config.keep, config.keep_best, about) as checkpoints,
    ):
        if config.resume:
            state = checkpoints.restore(state)
        done = start = int(state.step)
        with open_monitor(config, "sft", start, mesh, shapes_vary=config.pack_len > 0) as monitor:
            batches = look_ahead(loader.batches(start, config.steps), prepare)
            for step, (batch, counts) in monitor.steps(batches):
                if stop.requested():
                    break
                with monitor.phase("update"):
                    state, metrics = train_step(state, batch)
                    metrics = jax.device_get(metrics) | {"lr": lr[step]}
                run.begin()
                monitor.stop_if_broken(step + 1, metrics, batch, state)
                metrics["broken_images"] = broken_images(loader, step, mesh)
                flops = sft_flops(model.config, counts, freeze_vision=frozen, lora=adapted)
                monitor.log(step + 1, metrics, counts, flops)
                done = step + 1
                if done % config.checkpoint_every == 0 or done == config.steps:
                    checkpoints.save(done, state, score=-metrics["loss"])
        if done < config.steps:
            run.begin()
            checkpoints.save(done, state)
            stop.after(done)
    return config.out
