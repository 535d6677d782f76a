"""`zoomearth bench plan`: what `zoomearth plan` predicts for the attached devices, against the time that its programs take."""

from __future__ import annotations

import dataclasses
import statistics
import time

import jax

from zoomearth_jax.bench.peers import CASES
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.chips import chip
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.sharding import make_mesh
from zoomearth_jax.plan.cost import Network
from zoomearth_jax.plan.measure import measured_chip
from zoomearth_jax.plan.report import play
from zoomearth_jax.plan.steps import Program, Training


@dataclasses.dataclass(frozen=True)
class PlanBenchConfig:
    """What `zoomearth plan` predicts for the attached devices, against the time that its programs take.

    Peak and bandwidth of a device that isn't known are measured in the same run.

    Attributes:
        models: `nano`, `100m`, or both.
        prompts: questions per step and device.
        group: episodes per question.
        repeats: timings of each program, alternating, of which the median counts.
        compute: number types and backends.
        json: print JSON.
    """

    models: tuple[str, ...] = ("nano", "100m")
    prompts: int = 4
    group: int = 4
    repeats: int = 5
    compute: ComputeConfig = ComputeConfig()
    json: bool = False

    def __post_init__(self):
        if min(self.prompts, self.group, self.repeats) < 1 or not set(self.models) <= {"nano", "100m"}:
            raise UserError("bench plan: prompts, group and repeats must be positive, models among nano and 100m")


def bench_plan(config: PlanBenchConfig) -> list[dict]:
    """Rows `model, step, predicted_s, measured_s, ratio` (measured / predicted)."""
    devices = jax.devices()
    known = chip(devices[0].device_kind) or measured_chip(devices, config.compute.dtype)
    rows = []
    for name in config.models:
        episode = preset("nano")[1] if name == "nano" else EpisodeConfig(112, 112, prompt_len=64, turn_lens=(48, 32))
        training = Training(CASES[name]().config, episode, config.compute, make_mesh((len(devices), 1, 1)))
        programs, network = _programs(training, config, len(devices)), Network(known, devices)
        measured = _measured(programs, config.repeats)
        for step, program in programs.items():
            predicted = play(program.compiled, training, network, False, program.tokens).seconds
            rows.append(_row(name, step, predicted, measured[step]))
    return rows


def _row(model: str, step: str, predicted: float, measured: float) -> dict:
    return {
        "model": model,
        "step": step,
        "predicted_s": predicted,
        "measured_s": measured,
        "ratio": measured / predicted,
    }


def _programs(training: Training, config: PlanBenchConfig, devices: int) -> dict[str, Program]:
    prompts = config.prompts * devices
    rollout = training.rollout(prompts, config.group)
    return {
        "sft": training.sft(prompts * config.group),
        **{f"{each.name} {number}": each for number, each in enumerate(rollout, 1)},
        "grpo": training.grpo(prompts, config.group),
    }


def _measured(programs: dict[str, Program], repeats: int) -> dict[str, float]:
    """Median seconds of each program after a first run."""
    seconds: dict[str, list[float]] = {step: [] for step in programs}
    for _ in range(repeats + 1):
        for step, program in programs.items():
            args = jax.block_until_ready(program.example())  # anew: programs take states and caches over
            began = time.perf_counter()
            jax.block_until_ready(program.compiled(*args))
            seconds[step].append(time.perf_counter() - began)
    return {step: statistics.median(times[1:]) for step, times in seconds.items()}
