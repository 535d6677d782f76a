"""Settings of `zoomearth plan`: what is planned, and for which devices."""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.errors import UserError

PROGRAMS: Final = ("sft", "rollout", "grpo")


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
        int8: tokens are decoded with int8 kernels, as with the training verbs' `--rollout.weights int8`.
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
    int8: bool = False
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
