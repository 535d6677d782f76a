"""`zoomearth plan`: compiles the training programs for a TPU topology without its TPUs and says what they would take."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from typing import Literal

import jax

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.chips import GIB, chip
from zoomearth_jax.hardware.tpu_flags import NO_SPARSE_CORES, set_tpu_flags
from zoomearth_jax.plan.fit import fastest
from zoomearth_jax.plan.measure import measured_chip
from zoomearth_jax.plan.report import report_of
from zoomearth_jax.terminal.tables import table

PROGRAMS = ("sft", "rollout", "grpo")


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Memory, time and MFU of fine-tuning, rollout and GRPO step on devices that need not be here.

    Attributes:
        preset: size of the model.
        topology: TPUs to compile for, such as v5e:4x4, v5p:4x4x4 or v6e:16x16; the attached devices without one.
        slices: number of slices of a multi-slice system, each of that topology.
        mesh: sizes along data, fsdp and tensor; as the training verbs choose them by default.
        prompts: questions per GRPO step, over all devices.
        group: episodes per question.
        batch_size: samples per fine-tuning step; prompts x group by default.
        accumulate: microbatches of a step.
        layout: slots other than the preset's own, such as `--layout.turn-lens 640 256 256` for two pictures.
        compute: number types, attention backend, and what the backward pass recomputes.
        gather: see the training verbs' `--mesh.gather`.
        freeze_vision: keep the vision encoder as it is.
        kl: whether GRPO holds a reference policy.
        fill: share of the slots that hold tokens, 0 to 1: MFU counts only these, while programs run over whole slots.
        programs: what to compile.
        fit: try meshes, microbatches and remat policies, and report the fastest that fits.
        tries: how many `fit` compiles.
        hottest: places in the programs to list by their time.
        json: print JSON.
    """

    preset: str = "qwen2_5_vl_3b"
    topology: str = ""
    slices: int = 1
    mesh: tuple[int, ...] = ()
    prompts: int = 16
    group: int = 4
    batch_size: int = 0
    accumulate: int = 1
    layout: LayoutConfig = LayoutConfig()
    compute: ComputeConfig = ComputeConfig(dtype="bfloat16", remat="full")
    gather: bool = True
    freeze_vision: bool = True
    kl: bool = True
    fill: float = 1.0
    programs: tuple[Literal["sft", "rollout", "grpo"], ...] = PROGRAMS
    fit: bool = False
    tries: int = 6
    hottest: int = 0
    json: bool = False

    def __post_init__(self):
        if min(self.prompts, self.group, self.accumulate, self.slices, self.tries) < 1:
            raise UserError("plan config: prompts, group, accumulate, slices and tries must be positive")
        if self.mesh and (len(self.mesh) != 3 or min(self.mesh) < 1):
            raise UserError("plan config: mesh takes three sizes, along data, fsdp and tensor, such as --mesh 1 16 1")
        if not 0 < self.fill <= 1:
            raise UserError("plan config: fill is a share, above 0 and up to 1")
        if not self.programs:
            raise UserError(f"plan config: programs: name some of {', '.join(PROGRAMS)}")

    @property
    def samples(self) -> int:
        """Number of samples of a fine-tuning step."""
        return self.batch_size or self.prompts * self.group


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
            f"--topology {topology}: {str(error).splitlines()[0]}; try v5e:4x4, v5p:4x4x4, v6e:16x16"
        ) from None


def text(report: dict) -> str:
    """The report in lines: settings, a table per chip, collectives, assumptions."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    lines = [
        f"{report['preset']} on {report['chips']} x {report['chip']} ({report['topology']}), {mesh}; {report['prompts']} prompts x "
        f"{report['group']}, fine-tuning on {report['batch_size']} samples, {report['accumulate']} microbatches, "
        f"remat {report['remat']}, attention {report['attention']}",
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
        "seconds": row["seconds"],
        "MFU": row["mfu"],
    }
    if row["cycle_seconds"] != row["seconds"]:
        shown |= {"by cycles s": row["cycle_seconds"], "MFU ": row["cycle_mfu"]}
    return shown
