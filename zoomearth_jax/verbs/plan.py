"""`zoomearth plan`: compiles the training programs for a TPU topology without its TPUs and says what they would take."""

from __future__ import annotations

import importlib.util
import json
import os

import jax

from zoomearth_jax.configs.plan import PlanConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.chips import GIB, chip
from zoomearth_jax.hardware.tpu_flags import NO_SPARSE_CORES, set_tpu_flags
from zoomearth_jax.plan.fit import fastest
from zoomearth_jax.plan.measure import measured_chip
from zoomearth_jax.plan.report import report_of
from zoomearth_jax.terminal.tables import table


def plan(config: PlanConfig) -> dict:
    """Prints the report and returns it, as `--json` has it."""
    devices = topology_devices(config.topology, config.slices) if config.topology else jax.devices()
    known = chip(devices[0].device_kind) or measured_chip(devices, config.compute.dtype)
    report = (fastest if config.fit else report_of)(config, devices, known)
    print(json.dumps(report, indent=2) if config.json else text(report))
    return report


def topology_devices(topology: str, slices: int = 1) -> list:
    """Descriptions of the devices of a TPU topology.

    Raises:
        UserError: no libtpu, or no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--topology needs libtpu: pip install 'zoomearth_jax[plan]'; without it the attached devices are taken"
        )
    set_tpu_flags(NO_SPARSE_CORES)
    # libtpu looks for TPUs and their metadata server, and allows one process at a time, unless told otherwise
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_ACCELERATOR_TYPE": topology.partition(":")[0],
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        options = {"num_slices": slices} if slices > 1 else {}
        return topologies.get_topology_desc(topology, platform="tpu", **options).devices
    except Exception as error:
        raise UserError(
            f"--topology {topology}: {str(error).splitlines()[0]}; try v5e:4x4, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4"
        ) from None


def text(report: dict) -> str:
    """The report in lines: the iteration, settings, tables a chip, collectives, assumptions."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    headline = [] if report["iteration"] is None else [*_headline(report["iteration"]), ""]
    lines = [
        *headline,
        f"{report['preset']} on {report['chips']} x {report['chip']} ({report['topology']}), {mesh}, sampler {report['sampler']}; "
        f"{report['prompts']} prompts x "
        f"{report['group']}, fine-tuning on {report['batch_size']} samples, {report['accumulate']} microbatches, "
        f"remat {report['remat']}, attention {report['attention']}",
        *report["notes"],
        "",
        f"a chip, of {report['hbm_bytes'] / GIB:.2f} GiB:",
        table([_memory_row(name, row) for name, row in report["steps"].items()]),
        "",
        table([_time_row(name, row) for name, row in report["steps"].items()]),
    ]
    if "tried" in report:
        lines += ["", "tried:", table(report["tried"])]
    for name, row in report["steps"].items():
        sent = [
            f"{kind} {c['times']:.0f} x, {c['bytes'] / 1e9:.3g} GB" for kind, c in row.get("collectives", {}).items()
        ]
        lines += ["", f"{name}: " + ("; ".join(sent) or row.get("failed", "no collectives"))]
        lines += [f"  {seconds:.4f} s  {place}" for place, seconds in row["hottest"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*lines, "", "assumptions:", *(f"- {line}" for line in report["assumptions"]), versions])


def _headline(whole: dict) -> list[str]:
    """The iteration, and the same with the lengths that were measured."""
    lines = []
    for title, one in (("every slot written", whole), ("measured lengths", whole["filled"])):
        by_cycles = one["cycle_seconds"] != one["seconds"]
        cycles = [
            f" ({one[f'cycle_{name}']:.3g} by cycles)" if by_cycles else "" for name in ("seconds", "episodes_per_s")
        ]
        shares = ", ".join(f"{part} {share:.0%}" for part, share in one["shares"].items())
        lines.append(
            f"a GRPO iteration of {one['episodes']} episodes, {title}: {one['seconds']:.3g} s{cycles[0]}, "
            f"{one['episodes_per_s']:.3g} episodes a second{cycles[1]}, MFU {one['mfu']:.1%}; {shares}"
        )
    return lines


def _memory_row(name: str, row: dict) -> dict:
    parts = ("parameters", "optimizer", "reference", "cache", "activations", "total")
    cells = {f"{part} GiB": row[f"{part}_bytes"] / GIB for part in parts if f"{part}_bytes" in row}
    return {"step": name, **cells, "fits": "yes" if row["fits"] else "NO"}


def _time_row(name: str, row: dict) -> dict:
    if row["seconds"] is None:
        return {"step": name}
    shown = {
        "step": name,
        "TFLOP": row["flops"] / 1e12,
        "HBM GB": row["traffic_bytes"] / 1e9,
        "sent GB": sum(c["bytes"] for c in row["collectives"].values()) / 1e9,
        **{f"{part} s": row[f"{part}_bound_seconds"] for part in ("compute", "memory", "links", "copies")},
        "latency s": row["latency_seconds"],
        "seconds": row["seconds"],
        "MFU": row["mfu"],
    }
    if row["cycle_seconds"] != row["seconds"]:
        shown |= {"by cycles s": row["cycle_seconds"], "MFU ": row["cycle_mfu"]}
    if "maxtext_mfu" in row:
        shown["MaxText MFU"] = row["maxtext_mfu"]
    return shown
