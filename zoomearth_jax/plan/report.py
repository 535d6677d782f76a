"""What the compiled programs of one mesh and set of settings take: rows for the report."""

from __future__ import annotations

import importlib.metadata
import re
import time

import jax
import numpy as np
from jax.sharding import Mesh

from zoomearth_jax.configs.episode import RowLayout
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.plan import PlanConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.chips import Chip, chip
from zoomearth_jax.hardware.decoding import Decoding, lay_out
from zoomearth_jax.hardware.flops import (
    RowCounts,
    forward_flops,
    full_counts,
    grpo_flops,
    maxtext_flops,
    mfu,
    sft_flops,
)
from zoomearth_jax.models.families import abstract_model
from zoomearth_jax.models.family import Sizes
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.sharding import make_mesh, num_slices
from zoomearth_jax.plan.cost import Cost, Network, Player
from zoomearth_jax.plan.hlo import parse
from zoomearth_jax.plan.iteration import REWARDS_PER_SECOND, filled_trips, iteration
from zoomearth_jax.plan.steps import Training, chip_bytes, count_parameters
from zoomearth_jax.terminal.progress import tracked

STEPS = {  # program -> its rows
    "sft": ("sft",),
    "rollout": ("prefill", "decode", "pictures"),
    "grpo": ("grpo",),
}


def report_of(config: PlanConfig, devices, known: Chip) -> dict:
    """The report on one mesh and set of settings."""
    training, notes = _training(config, devices, known)
    steps: dict[str, dict] = {}
    for program in tracked(config.programs, "compiling"):
        began = time.perf_counter()
        try:
            rows = _PROGRAMS[program](config, training, Network(known, training.mesh.devices.flat))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            rows = {name: _too_large(str(error)) for name in STEPS[program]}
        compiled_in = time.perf_counter() - began
        steps |= {
            name: _finished(name, row, config, training, known) | {"compile_seconds": compiled_in}
            for name, row in rows.items()
        }
    return {
        "preset": config.preset,
        "chip": known.name,
        "chips": len(devices),
        "topology": config.topology or "attached devices",
        "hbm_bytes": known.hbm_bytes,
        "mesh": dict(zip(training.mesh.axis_names, training.mesh.axis_sizes, strict=True)),
        "sampler": training.sampler.shape["weights"] if training.sampler else 1,
        "notes": notes,
        "prompts": config.prompts,
        "group": config.group,
        "batch_size": config.samples,
        "accumulate": config.accumulate,
        "remat": config.compute.remat,
        "attention": config.compute.attention,
        "int8": config.int8,
        "iteration": iteration(config, training, steps, known),
        "steps": {name: steps[name] for rows in STEPS.values() for name in rows if name in steps},
        "assumptions": assumptions(config, known),
        "versions": versions(),
    }


def _training(config: PlanConfig, devices, known: Chip) -> tuple[Training, list[str]]:
    """What is compiled, and what is worth saying about the sampler's layout."""
    model, episode = preset(config.preset)
    episode = config.layout.of(episode, model.merged_px)
    sizes = config.mesh or MeshConfig().shape(
        len(devices), count_parameters(model), num_slices(devices), known.hbm_bytes
    )
    if sizes[0] * sizes[1] * sizes[2] != len(devices):
        raise UserError(f"--mesh {' '.join(map(str, sizes))}: that is not the {len(devices)} devices of the topology")
    shards = sizes[0] * sizes[1] * config.accumulate
    for name, rows in (("prompts", config.prompts), ("batch-size", config.samples)):
        if rows % shards:
            raise UserError(f"--{name} {rows} doesn't divide over data x fsdp x accumulate = {shards}; take a multiple")
    mesh = make_mesh(sizes, devices)
    sampler, notes = lay_out(decoding(config, mesh), config.sampler)
    training = Training(
        model,
        episode,
        config.compute,
        mesh,
        gather=config.gather,
        freeze_vision=config.freeze_vision,
        accumulate=config.accumulate,
        kl=config.kl,
        sampler=sampler,
        int8=config.int8,
    )
    return training, notes


def decoding(config: PlanConfig, mesh: Mesh) -> Decoding:
    """What decides on the sampler's layout, as the training verbs see it: devices that aren't known take the trainer's."""
    model, episode = preset(config.preset)
    layout = config.layout.of(episode, model.merged_px).layout(model.merged_px)
    known, slots = chip(mesh.devices.flat[0].device_kind), layout.prompt_len + layout.reply_len
    return Decoding(
        abstract_model(model, config.compute), mesh, config.prompts, config.group, slots, known, trains=True
    )


def _plan_sft(config: PlanConfig, training: Training, network: Network) -> dict:
    compiled = training.sft(config.samples).compiled
    return {"sft": _memory(compiled, training) | _time(compiled, training, network)}


def _plan_grpo(config: PlanConfig, training: Training, network: Network) -> dict:
    compiled = training.grpo(config.prompts, config.group).compiled
    return {"grpo": _memory(compiled, training, reference=config.kl) | _time(compiled, training, network)}


def _plan_rollout(config: PlanConfig, training: Training, network: Network) -> dict:
    """A row for each part of the rollout, which may have several programs."""
    programs = training.rollout(config.prompts, config.group)
    cache = training.cache_bytes(config.prompts, config.group)
    memory: dict[str, list[dict]] = {}
    for each in programs:
        row = _memory(each.compiled, training, config.kl, each.held_bytes, cache, resident=True)
        memory.setdefault(each.name, []).append(row)
    rows = {name: _largest(own) for name, own in memory.items()}
    failed = next(filter(None, (_unreadable(each.compiled) for each in programs)), None)
    if failed:
        return {name: row | failed for name, row in rows.items()}
    costs = {cycles: {name: Cost() for name in rows} for cycles in (True, False)}
    filled = {True: Cost(), False: Cost()}
    for each, trips in zip(programs, filled_trips(programs, config.fill, training.layout), strict=True):
        for cycles, parts in costs.items():
            cost = play(each.compiled, training, network, cycles, each.tokens)
            parts[each.name].add(cost)
            if each.name == "decode" and trips:
                filled[cycles].add(cost)
                for _, token in cost.open_loops:
                    filled[cycles].add(token, trips - each.tokens)
    rows = {name: row | _cost_row(costs[False][name], costs[True][name]) for name, row in rows.items()}
    tokens = sum(training.layout.turn_lens)
    rows["decode"] |= {
        "tokens": tokens,
        "token_seconds": rows["decode"]["seconds"] / tokens,
        "filled_seconds": filled[False].seconds,
        "filled_cycle_seconds": filled[True].seconds,
    }
    return rows


def _largest(rows) -> dict:
    return max(rows, key=lambda row: row["total_bytes"])


_PROGRAMS = {"sft": _plan_sft, "rollout": _plan_rollout, "grpo": _plan_grpo}


def _memory(
    compiled, training: Training, reference: bool = False, held: int = 0, cache: int = 0, resident: bool = False
) -> dict:
    """Bytes of a chip by what they hold.

    Args:
        held: bytes of parameters beside the program's arguments. resident: adds the training state that a rollout's program
            doesn't take.
    """
    found = compiled.memory_analysis()
    _, state = training.init()
    params, optimizer = chip_bytes(state.params), chip_bytes(state.opt_state)
    ref = chip_bytes(training.reference(state)) if reference else 0
    program = (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
        + found.generated_code_size_in_bytes
    )
    total = program + held + (optimizer + ref if resident else 0)
    return {
        "total_bytes": total,
        "parameters_bytes": params,
        "optimizer_bytes": optimizer,
        "reference_bytes": ref,
        "cache_bytes": cache,
        "activations_bytes": total - params - optimizer - ref - cache,
    }


def play(compiled, training: Training, network: Network, cycles: bool, open_trips: int = 1) -> Cost:
    """The cost of a program; `open_trips` as of `Player`."""
    return Player(parse(compiled.as_text()), network, training.model.branch_shares, open_trips, cycles).play()


def _time(compiled, training: Training, network: Network) -> dict:
    return _unreadable(compiled) or _cost_row(*(play(compiled, training, network, cycles) for cycles in (False, True)))


def _unreadable(compiled) -> dict:
    """The message about a program whose text jaxlib can't read, as of some of a newer libtpu; its memory is known still."""
    try:
        compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        return {"failed": f"compiled, but its text can't be read: {error}".splitlines()[0]}
    return {}


def _cost_row(cost: Cost, cycles: Cost) -> dict:
    """The roofline's figures, and the time by the compiler's counts of cycles; the hottest places are of the latter."""
    parts = {name: getattr(cost, name) for name in ("compute", "memory", "links", "copies")}
    return {
        "latency_seconds": cost.latency,
        "flops": cost.flops,
        "traffic_bytes": cost.hbm_bytes,
        "collectives": {kind: {"times": n, "bytes": sent} for kind, (n, sent) in cost.collectives.items()},
        "link_seconds": cost.link_seconds,
        **{f"{name}_bound_seconds": seconds for name, seconds in parts.items()},
        "bound": max(parts, key=parts.__getitem__),
        "seconds": cost.seconds,
        "cycle_seconds": cycles.seconds,
        "hottest": dict(sorted(cycles.spots.items(), key=lambda item: -item[1])),
    }


def _too_large(message: str) -> dict:
    """The row of a program that the compiler gave up on; its total is what the message states, if it does."""
    stated = re.search(r"\(([\d.]+)([MGT])\)|[Uu]sed ([\d.]+)([MGT])", message)
    number, unit = [part for part in stated.groups() if part] if stated else ("0", "G")
    return {"total_bytes": float(number) * 2 ** {"M": 20, "G": 30, "T": 40}[unit], "failed": message.splitlines()[0]}


def _finished(name: str, row: dict, config: PlanConfig, training: Training, known: Chip) -> dict:
    """The row with what follows from chip and model."""
    row["fits"] = "parameters_bytes" in row and row["total_bytes"] <= known.hbm_bytes
    row["model_flops"] = step_flops(name, config, training.model, training.layout)
    chips = training.mesh.size
    for seconds, share in (("seconds", "mfu"), ("cycle_seconds", "cycle_mfu")):
        row[share] = mfu(row["model_flops"], row[seconds], chips, known.peak_flops) if seconds in row else None
        row.setdefault(seconds, None)
    if name in ("sft", "grpo") and row["seconds"]:
        flops = _maxtext_flops(name, config, training)
        row["maxtext_mfu"] = mfu(flops, row["seconds"], chips, known.peak_flops)
    row.setdefault("flops", None)
    row["hottest"] = dict(list(row.get("hottest", {}).items())[: config.hottest])
    return row


def _maxtext_flops(name: str, config: PlanConfig, training: Training) -> float:
    if name == "sft":
        return maxtext_flops(training.model, full_counts(training.layout, config.samples))
    counts = full_counts(training.layout, config.prompts, config.group)
    return maxtext_flops(training.model, counts, 3 + config.kl)


def step_flops(name: str, config: PlanConfig, model: Sizes, layout: RowLayout) -> float:
    """Model FLOPs (see `zoomearth_jax.hardware.flops`) of a row of the report over all chips, every slot filled."""
    if name == "sft":
        return sft_flops(model, full_counts(layout, config.samples), freeze_vision=config.freeze_vision)
    counts = full_counts(layout, config.prompts, config.group)
    if name == "grpo":
        return grpo_flops(model, counts, freeze_vision=config.freeze_vision, kl=config.kl)

    def forward(reply: int, scored: int, pictures: int) -> float:
        nothing, seen = counts.reply_B * 0, np.arange(layout.num_pictures)[:, None] < pictures
        part: RowCounts = counts._replace(
            reply_B=nothing + reply, scored_B=nothing + scored, picture_BI2=counts.picture_BI2 * seen
        )
        return sum(forward_flops(model, part))

    prefill = forward(0, 0, 0)
    slots = [layout.picture(k) for k in range(layout.num_pictures)]
    pictures = sum(forward(own.stop, 0, k + 1) - forward(own.start, 0, k) for k, own in enumerate(slots))
    whole = forward(layout.reply_len, layout.written_len, layout.num_pictures)
    return {"prefill": prefill, "pictures": pictures, "decode": whole - prefill - pictures}[name]


def assumptions(config: PlanConfig, known: Chip) -> list[str]:
    """What the figures rest on."""
    tera, giga, micro = 1e12, 1e9, 1e-6
    links = f"{known.links} links of {known.link_bandwidth / giga:.3g} GB/s a direction"
    longest, later = config.fill.longest
    return [
        f"a chip: {known.peak_flops / tera:.4g} TFLOP/s, {known.hbm_bandwidth / giga:.4g} GB/s, {links}, "
        f"{known.network_bandwidth / giga:.3g} GB/s between slices",
        f"a collective has the latency of its hops beside its bytes: {known.hop_seconds / micro:.3g} us each, between slices "
        f"{known.network_seconds / micro:.3g} us, on the longest way in its group, twice for an all-reduce",
        "instructions run one after the other as XLA scheduled them, each for the longer of FLOPs / peak and bytes / bandwidth"
        + (f"; by cycles: or for XLA's own count of cycles at {known.clock / giga:.3g} GHz" if known.clock else ""),
        "asynchronous copies and collectives run beside them, synchronous ones don't; links are not shared with other work",
        "loops count by their trips, those over tokens to the end of their slots; vision blocks by their share of full ones",
        f"measured lengths: {config.fill.looks:.0%} of the episodes look closer; a batch's longest row has {longest} tokens in the "
        f"first turn, {later} in a later one, which ends at the host's next look; prompts, pictures and update take all slots",
        "MFU: model FLOPs without padding, recomputation and cached work",
        "MaxText MFU: 6 x weights x tokens, logits for every slot, attention as if it were not causal (MaxText until April 2026)",
        f"rewards take what one host needs for {REWARDS_PER_SECOND:,} answers a second, after the rollout",
        "nothing runs on SparseCores, which v5p and v6e have",
        "no time for the host: reading images, sending batches, starting programs",
    ]


def versions() -> dict[str, str]:
    """Versions of what compiled the programs."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
