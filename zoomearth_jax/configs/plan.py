"""Settings of `zoomearth plan`: what is planned, and for which devices."""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.errors import UserError

PROGRAMS: Final = ("sft", "rollout", "grpo")


@dataclasses.dataclass(frozen=True)
class FillConfig:
    """What tokens there really are in the slots, as LRS-GRO has them in Qwen's vocabulary: means, and where decoding ends.

    Prompts are measured on the 2,500 questions of its reinforcement learning rows, a quarter of which have no box; replies on its
    published sample rows, longest 251, 147 and 357 tokens. A turn of a batch ends with its longest row; an answer without a look
    has been seen with 556 tokens, which is the longest first turn that is expected.

    Attributes:
        prompt: tokens of a prompt, with an overview of 512 px.
        looks: share of the episodes that look closer, 0 to 1.
        look, answer, alone: tokens of a turn that asks for a picture, of the answer after it, and of an answer without a look.
        longest: tokens of a batch's longest row, in the first turn and in each later one.
    """

    prompt: int = 422
    looks: float = 0.75
    look: int = 245
    answer: int = 122
    alone: int = 324
    longest: tuple[int, int] = (556, 147)

    def __post_init__(self):
        if min(self.prompt, self.look, self.answer, self.alone, *self.longest) < 1 or not 0 <= self.looks <= 1:
            raise UserError("plan config: fill takes positive numbers of tokens, and a share of looks from 0 to 1")


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Memory, time and MFU of fine-tuning, rollout and GRPO step on devices that need not be here.

    Attributes:
        preset: size of the model.
        topology: TPUs to compile for, such as v5e:4x4, v5p:4x4x4, v6e:16x16 or tpu7x:4x4x4; the attached devices without one.
        slices: number of slices of a multi-slice system, each of that topology.
        mesh: sizes along data, fsdp and tensor; as the training verbs choose them by default.
        sampler: devices that share out the weights while tokens are written, see the training verbs' `--mesh.sampler`; chosen by 0.
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
        fill: tokens in the slots, for the iteration that is reported beside the one with every slot written.
        programs: what to compile.
        fit: try meshes, layouts of the sampler, microbatches and remat policies, and report the fastest that fits.
        tries: how many `fit` compiles.
        hottest: places in the programs to list by their time.
        json: print JSON.
    """

    preset: str = "qwen2_5_vl_3b"
    topology: str = ""
    slices: int = 1
    mesh: tuple[int, ...] = ()
    sampler: int = 0
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
    fill: FillConfig = FillConfig()
    programs: tuple[Literal["sft", "rollout", "grpo"], ...] = PROGRAMS
    fit: bool = False
    tries: int = 6
    hottest: int = 0
    json: bool = False

    def __post_init__(self):
        if min(self.prompts, self.group, self.accumulate, self.slices, self.tries) < 1:
            raise UserError("plan config: prompts, group, accumulate, slices and tries must be positive")
        if self.sampler < 0:
            raise UserError("plan config: sampler must be a number of devices, or 0 to be chosen")
        if self.mesh and (len(self.mesh) != 3 or min(self.mesh) < 1):
            raise UserError("plan config: mesh takes three sizes, along data, fsdp and tensor, such as --mesh 1 16 1")
        if not self.programs:
            raise UserError(f"plan config: programs: name some of {', '.join(PROGRAMS)}")

    @property
    def samples(self) -> int:
        """Number of samples of a fine-tuning step."""
        return self.batch_size or self.prompts * self.group
