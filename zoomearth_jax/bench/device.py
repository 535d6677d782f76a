"""`zoomearth bench device`: what the attached accelerator makes of the 3B, beside its rooflines and what `zoomearth plan` predicts.

Four parts, each of which may fail by itself (such as by memory) and then is a row that says why: the card's own peak and
bandwidth; attention by each backend, forward and backward; the programs of a rollout, of which decoding counts by the bytes
that it reads; and whole GRPO iterations with rewards and update. Weights are random at the real widths, and all slots are
written, because such weights end no turn. `make gpu` runs it.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zoomearth_jax.bench.random_checkpoint import write_random_model
from zoomearth_jax.bench.timing import median_seconds, seconds_of
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.configs.optimizer import OptimizerConfig
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.chips import GIB, Chip, chip
from zoomearth_jax.hardware.flops import grpo_flops, mfu, row_counts
from zoomearth_jax.hardware.surroundings import surroundings
from zoomearth_jax.models.attention import decoder_attention, masked_attention
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.sharding import make_mesh
from zoomearth_jax.plan.cost import Network
from zoomearth_jax.plan.measure import best_seconds, measured_chip
from zoomearth_jax.plan.report import play
from zoomearth_jax.plan.steps import Program, Training, chip_bytes
from zoomearth_jax.rl.grpo import GRPO, Asked
from zoomearth_jax.runs.models import load_model

PARTS = ("card", "attention", "rollout", "iteration")
LORA = LoRAConfig(rank=16, alpha=32.0)
SIDE = 8192  # of the matrices that a known card's peak is measured with


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """The attached accelerator: attention, decoding, update and whole GRPO iterations, beside rooflines and predictions.

    Attributes:
        preset: model size; its weights are random.
        parts: which of card, attention, rollout, iteration.
        prompts: questions per step.
        group: episodes per question.
        accumulate: microbatches of the update.
        train: `full` trains all of the decoder with float32 masters and AdamW, `lora` adapters of rank 16 on bfloat16 weights,
            `auto` the first where its state fits the card and the update doesn't run out of memory, and else the second.
        layout: slots and views other than the preset's.
        compute: number types and backends.
        repeats: timings of each, of which the median counts.
        json: print JSON.
    """

    preset: str = "qwen2_5_vl_3b"
    parts: tuple[str, ...] = PARTS
    prompts: int = 16
    group: int = 4
    accumulate: int = 8
    train: Literal["auto", "full", "lora"] = "auto"
    layout: LayoutConfig = LayoutConfig()
    compute: ComputeConfig = ComputeConfig(dtype="bfloat16", remat="full")
    repeats: int = 3
    json: bool = False

    def __post_init__(self):
        if unknown := set(self.parts) - set(PARTS):
            raise UserError(f"bench device: unknown parts {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
        if min(self.prompts, self.accumulate, self.repeats) < 1 or self.group < 2:
            raise UserError("bench device: prompts, accumulate and repeats must be positive, group at least 2")
        if self.prompts % self.accumulate:
            raise UserError("bench device: accumulate must divide prompts")
        if self.train not in ("auto", "full", "lora"):
            raise UserError(f"bench device: train is auto, full or lora, not {self.train!r}")


def bench_device(config: DeviceConfig) -> list[dict]:
    """Rows `part, what, seconds` with what follows from them: `predicted_s` by `zoomearth plan`'s roofline and `ratio` (measured /
    predicted), rates, shares of the card's peak (`of_peak`, which is MFU of an update) and bandwidth (`of_bandwidth`)."""
    device = jax.devices()[0]
    known = chip(device.device_kind)
    card = known or measured_chip([device], config.compute.dtype)
    parts: dict[str, Callable[..., Iterator[dict]]] = {
        "card": _card,
        "attention": _attention,
        "rollout": _rollout,
        "iteration": _iteration,
    }
    rows: list[dict] = []
    mesh = make_mesh((1, 1, 1))
    with jax.set_mesh(mesh):
        for name in config.parts:
            rows += ({"part": name, **row} for row in _guarded(parts[name](config, card, mesh)))
    return rows


def _guarded(rows: Iterator[dict]) -> Iterator[dict]:
    """The rows that come before one fails, and one that says how it did."""
    try:
        yield from rows
    except (jax.errors.JaxRuntimeError, UserError) as error:
        yield _failed(error)
    gc.collect()


def _failed(error: Exception) -> dict:
    return {"what": "failed", "note": str(error).splitlines()[0][:200]}


def _card(config: DeviceConfig, card: Chip, mesh: Mesh) -> Iterator[dict]:
    """The card's peak and bandwidth as measured, beside the maker's, where these are known."""
    del mesh
    device = jax.devices()[0]
    yield {"what": card.name, "gib": card.hbm_bytes / GIB, "note": surroundings()}
    side = SIDE if chip(device.device_kind) else SIDE // 8
    square = jnp.ones((side, side), config.compute.dtype)
    seconds = best_seconds(jax.jit(jnp.matmul), square, square)
    yield _row(f"product of {side} x {side} matrices", seconds, card, flops=2.0 * side**3)
    line = jnp.ones(2**28 // 4, jnp.float32)
    seconds = best_seconds(jax.jit(lambda x: x + 1.0), line)
    yield _row("copy of 256 MiB", seconds, card, moved=2.0 * line.nbytes)


def _row(what: str, seconds: float, card: Chip, flops: float = 0.0, moved: float = 0.0, predicted: float = 0.0) -> dict:
    """A row with what follows from the work."""
    row: dict[str, Any] = {"what": what, "seconds": seconds}
    if predicted:
        row |= {"predicted_s": predicted, "ratio": seconds / predicted}
    if flops:
        row |= {"tflop_s": flops / seconds / 1e12, "of_peak": flops / seconds / card.peak_flops}
    if moved:
        row |= {"gb_s": moved / seconds / 1e9, "of_bandwidth": moved / seconds / card.hbm_bandwidth}
    return row


def _attention(config: DeviceConfig, card: Chip, mesh: Mesh) -> Iterator[dict]:
    """Both kinds of attention at the model's shapes by each backend, forward, and forward with backward (3.5 x the FLOPs)."""
    del mesh
    model, episode = preset(config.preset)
    layout = config.layout.of(episode, model.merged_px).layout(model.merged_px)
    text, vision, rows = model.text, model.vision, config.group
    length, patches = layout.prompt_len + layout.reply_len, (layout.view_side // vision.patch_size) ** 2
    heads = vision.width // vision.num_heads
    cases: dict[str, tuple] = {
        f"decoder, {rows} x {length} tokens": (
            lambda q, k, v, backend: decoder_attention(
                q, k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.ones(q.shape[:2], jnp.int32), None, backend
            ),
            (rows, length, text.num_heads, text.head_dim),
            (rows, length, text.num_kv_heads, text.head_dim),
            0.5,
        ),
        f"vision, {rows} x {patches} patches": (
            lambda q, k, v, backend: masked_attention(q, k, v, jnp.ones(q.shape[:2], bool), backend),
            *[(rows, patches, vision.num_heads, heads)] * 2,
            1.0,
        ),
    }
    for case, (attend, q_shape, kv_shape, share) in cases.items():
        keys = jax.random.split(jax.random.key(0), 3)
        inputs = [
            jax.random.normal(key, shape, config.compute.dtype)
            for key, shape in zip(keys, (q_shape, kv_shape, kv_shape), strict=True)
        ]
        flops = share * 4.0 * np.prod(q_shape) * q_shape[1]
        for backend in ("xla", "cudnn"):
            yield from _attention_rows(f"{case}, {backend}", attend, inputs, backend, flops, card, config)


def _attention_rows(what, attend, inputs, backend: str, flops: float, card: Chip, config) -> Iterator[dict]:
    def summed(*inputs):
        return attend(*inputs, backend).astype(jnp.float32).sum()

    forward = jax.jit(lambda *inputs: attend(*inputs, backend))
    backward = jax.jit(jax.grad(summed, argnums=(0, 1, 2)))
    try:
        for name, function, passes in (("forward", forward, 1.0), ("forward and backward", backward, 3.5)):
            seconds = median_seconds(lambda: function(*inputs), config.repeats)  # noqa: B023
            yield _row(f"{what}, {name}", seconds, card, flops=passes * flops)
    except (jax.errors.JaxRuntimeError, UserError) as error:
        yield _failed(error) | {"what": f"{what}: failed"}


def _training(config: DeviceConfig, mesh: Mesh, int8: bool = False) -> Training:
    model, episode = preset(config.preset)
    episode = config.layout.of(episode, model.merged_px)
    return Training(model, episode, config.compute, mesh, accumulate=config.accumulate, int8=int8)


def _rollout(config: DeviceConfig, card: Chip, mesh: Mesh) -> Iterator[dict]:
    """The programs of a rollout, each against its prediction; of decoding the tokens of all rows a second, and the bytes that it
    moves by the prediction's count. Decoding with int8 kernels follows."""
    network, rows = Network(card, jax.devices()[:1]), config.prompts * config.group
    for int8 in (False, True):
        training = _training(config, mesh, int8)
        for program in training.rollout(config.prompts, config.group):
            decodes = program.tokens > 1
            if int8 and not decodes:
                continue
            cost = play(program.compiled, training, network, False, program.tokens)
            seconds = _program_seconds(program, config.repeats)
            what = f"{program.name}, {rows} x {program.tokens} tokens{', int8' * int8}" if decodes else program.name
            row = _row(what, seconds, card, moved=cost.hbm_bytes if decodes else 0.0, predicted=cost.seconds)
            yield row | ({"tokens_s": rows * program.tokens / seconds} if decodes else {})


def _program_seconds(program: Program, repeats: int) -> float:
    """Median seconds after a first run; arguments are made anew, because programs take caches over."""
    seconds = []
    for _ in range(repeats + 1):
        args = jax.block_until_ready(_random(program.example()))
        seconds.append(seconds_of(functools.partial(program.compiled, *args)))
    return statistics.median(seconds[1:])


@jax.jit
def _random(tree):
    """The tree with small random numbers in the place of large arrays' zeros, whose products take less power and so less time."""

    def one(x):
        if not isinstance(x, jax.Array) or x.size < 2**16:
            return x
        if x.dtype == jnp.int8:
            return jax.random.randint(jax.random.key(0), x.shape, -127, 128, jnp.int8)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return 0.02 * jax.random.normal(jax.random.key(0), x.shape, x.dtype)

    return jax.tree.map(one, tree)


def _iteration(config: DeviceConfig, card: Chip, mesh: Mesh) -> Iterator[dict]:
    """Whole iterations with all parameters of the decoder or with adapters, see `DeviceConfig.train`."""
    training = _training(config, mesh)
    needed, limit = state_bytes(training), _memory_limit(card)
    fits = needed < limit
    yield {
        "what": "full AdamW state with gradients and reference",
        "gib": needed / GIB,
        "note": f"{'fits' if fits else 'does not fit'} {limit / GIB:.1f} GiB",
    }
    with tempfile.TemporaryDirectory() as directory:
        write_random_model(Path(directory), config.preset)
        if config.train == "full" or (config.train == "auto" and fits):
            rows = list(_guarded(_iterations(config, card, mesh, Path(directory), training)))
            yield from rows
            if config.train == "full" or rows[-1]["what"] != "failed":
                return
        yield from _guarded(_iterations(config, card, mesh, Path(directory), None))


def state_bytes(training: Training) -> int:
    """Bytes of the state of training all that isn't frozen: parameters, AdamW's moments, gradients with their sum over
    microbatches, and the reference policy."""
    _, state = training.init()
    gradients = chip_bytes(state.trainable) * (2 if training.accumulate > 1 else 1)
    reference = chip_bytes(training.reference(state)) if training.kl else 0
    return chip_bytes(state.params) + chip_bytes(state.opt_state) + gradients + reference


def _memory_limit(card: Chip) -> float:
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", card.hbm_bytes)


def _iterations(
    config: DeviceConfig, card: Chip, mesh: Mesh, directory: Path, predicting: Training | None
) -> Iterator[dict]:
    """Rows of rollout with rewards, update, and both.

    Args:
        predicting: all parameters of the decoder train, and this predicts the update; adapters without it.
    """
    full = predicting is not None
    compute = config.compute if full else dataclasses.replace(config.compute, param_dtype="bfloat16")
    settings = GRPOConfig(
        model=str(directory),
        prompts=config.prompts,
        group=config.group,
        accumulate=config.accumulate,
        optimizer=OptimizerConfig(lr=1e-7, warmup=0, decay=False),  # all iterations do the same work
        lora=LoRAConfig() if full else LORA,
        compute=compute,
        layout=config.layout,
        rollout=RolloutConfig(crop_gate="oracle"),  # random weights name no box, and the crops are part of the work
    )
    model, rows = load_model(directory, compute, mesh, config.layout)
    sizes, training = model.config, GRPO(settings, model, rows, mesh)
    del model
    questions = scene_questions("grpo", 0, 0, config.prompts, global_share=0.0)
    times = []
    for step in range(config.repeats + 1):  # the first one compiles
        began = time.perf_counter()
        played = training.play(Asked(questions, training.send(training.rows.prompts(questions)), step))
        between = time.perf_counter()
        training.update(played)[0].metrics()
        times.append((between - began, time.perf_counter() - between))
    rollout, update = (statistics.median(column) for column in zip(*times[1:], strict=True))
    counts = row_counts(played.episodes.prompts, played.episodes.replies)
    flops = grpo_flops(sizes, counts, freeze_vision=True, kl=True, lora=not full)
    kind, episodes = "all parameters" if full else f"LoRA of rank {LORA.rank}", config.prompts * config.group
    written = int(counts.scored_B.sum())
    yield {"what": f"rollout and rewards, {kind}", "seconds": rollout, "tokens_s": written / rollout}
    row = {"what": f"update, {kind}", "seconds": update, "of_peak": mfu(flops, update, 1, card.peak_flops)}
    if predicting:
        program, network = predicting.grpo(config.prompts, config.group), Network(card, jax.devices()[:1])
        predicted = play(program.compiled, predicting, network, False).seconds
        row |= {"predicted_s": predicted, "ratio": update / predicted}
    yield row
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    whole = {"what": f"iteration of {episodes} episodes, {kind}", "seconds": rollout + update}
    yield whole | {"episodes_s": episodes / (rollout + update)} | ({"gib": peak / GIB} if peak else {})
