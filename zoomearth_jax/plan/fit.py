"""`plan --fit`: the fastest mesh, layout of the sampler, number of microbatches and remat policy that fits."""

from __future__ import annotations

import dataclasses
import itertools

from zoomearth_jax.configs.mesh import STATE_BYTES
from zoomearth_jax.configs.plan import PlanConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.chips import GIB, Chip
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.sharding import make_mesh, num_slices
from zoomearth_jax.plan.report import decoding, report_of, step_flops
from zoomearth_jax.plan.steps import count_parameters
from zoomearth_jax.terminal.progress import tracked

KEPT_VALUES = {"full": 1, "dots": 12, "none": 40}  # bfloat16 values of model width that a token keeps a layer, roughly
RECOMPUTED = {"full": 4 / 3, "dots": 1.1, "none": 1.0}  # of the FLOPs


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Settings to try, with a rough guess of their memory and time."""

    mesh: tuple[int, int, int]
    sampler: int
    accumulate: int
    remat: str
    guessed_bytes: float
    guessed_seconds: float

    def apply(self, config: PlanConfig) -> PlanConfig:
        """The plan's settings with these."""
        compute = dataclasses.replace(config.compute, remat=self.remat)
        return dataclasses.replace(
            config, mesh=self.mesh, sampler=self.sampler, accumulate=self.accumulate, compute=compute, fit=False
        )


def fastest(config: PlanConfig, devices, known: Chip) -> dict:
    """The report of the fastest candidate that fits, with a row for each that was compiled under `tried`.

    Raises:
        UserError: none fits.
    """
    chosen = [c for c in candidates(config, devices, known) if c.guessed_bytes < known.hbm_bytes][: config.tries]
    reports = []
    for candidate in tracked(chosen, "candidates"):
        report = report_of(candidate.apply(config), devices, known)
        fits = all(row["fits"] for row in report["steps"].values())
        seconds = sum(row["seconds"] for row in report["steps"].values()) if fits else None
        reports.append((fits, seconds, report, _tried(candidate, report, fits, seconds)))
    fitting = [entry for entry in reports if entry[0]]
    if not fitting:
        tried = (
            "; ".join(
                f"mesh {c.mesh}, sampler {c.sampler}, {c.accumulate} microbatches, remat {c.remat}" for c in chosen
            )
            or "nothing was near"
        )
        raise UserError(
            f"plan --fit: nothing fits {known.hbm_bytes / GIB:.2f} GiB a chip ({tried}); take a larger topology"
        )
    best = min(fitting, key=lambda entry: entry[1] or 0.0)[2]
    return best | {"tried": [entry[3] for entry in reports]}


def _tried(candidate: Candidate, report: dict, fits: bool, seconds: float | None) -> dict:
    steps = {f"{name} s": row["seconds"] for name, row in report["steps"].items() if row["seconds"]}
    return {
        "mesh": " ".join(map(str, candidate.mesh)),
        "sampler": candidate.sampler,
        "microbatches": candidate.accumulate,
        "remat": candidate.remat,
        "guessed GiB": candidate.guessed_bytes / GIB,
        "largest GiB": max(row["total_bytes"] for row in report["steps"].values()) / GIB,
        "fits": "yes" if fits else "NO",
        **steps,
        "seconds": seconds if fits else "",
    }


def candidates(config: PlanConfig, devices, known: Chip) -> list[Candidate]:
    """All settings that divide the work, those first that look fastest."""
    model, episode = preset(config.preset)
    layout = config.layout.of(episode, model.merged_px).layout(model.merged_px)
    chips, slices = len(devices), num_slices(devices)
    parameters = count_parameters(model)
    flops = max(step_flops(name, config, model, layout) for name in ("sft", "grpo"))
    tokens = max(config.samples, config.prompts * config.group) * (layout.prompt_len + layout.reply_len)
    out = []
    for fsdp, tensor in itertools.product(_powers(chips), _powers(8)):
        data = chips // (fsdp * tensor)
        if data * fsdp * tensor != chips or data % slices or model.text.num_heads % tensor:
            continue
        samplers = _samplers(config, (data, fsdp, tensor), devices, layout.written_len)
        for parts, remat in itertools.product(_powers(16), RECOMPUTED):
            shards = data * fsdp * parts
            if config.prompts % shards or config.samples % shards:
                continue
            kept = tokens / shards * model.text.num_layers * model.text.width * 2 * KEPT_VALUES[remat]
            state = parameters * STATE_BYTES / (fsdp * tensor)
            links = known.link_bandwidth * known.links
            seconds = flops * RECOMPUTED[remat] / chips / known.peak_flops
            if tensor > 1:
                seconds *= 1.5
            if fsdp > 1:
                seconds += 3 * parts * parameters * 2 / tensor / links
            for size, held, decoding_seconds in samplers:
                guess = max(state + kept, held), seconds + decoding_seconds
                out.append(Candidate((data, fsdp, tensor), size, parts, remat, *guess))
    return sorted(out, key=lambda c: (c.guessed_seconds, c.guessed_bytes))


def _samplers(config: PlanConfig, sizes: tuple[int, int, int], devices, tokens: int) -> list[tuple[int, float, float]]:
    """The sampler's layouts on a mesh: devices that share the weights out, bytes of a device, seconds of decoding.

    By the estimate that the training verbs choose by; one layout, which takes nothing, where no rollout is planned.
    """
    if "rollout" not in config.programs:
        return [(1, 0.0, 0.0)]
    known = decoding(config, make_mesh(sizes, devices))
    layouts = [config.sampler] if config.sampler else known.sizes()
    return [(size, known.held_bytes(size), tokens * known.seconds(size) if known.chip else 0.0) for size in layouts]


def _powers(largest: int) -> list[int]:
    return [2**n for n in range(largest.bit_length()) if 2**n <= largest]
