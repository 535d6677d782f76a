"""Settings of the training verbs: what SFT and GRPO share, and what each has of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.curriculum import CurriculumConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.judge import JudgeConfig
from zoomearth_jax.configs.lora import LoRAConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.optimizer import OptimizerConfig
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ValidateConfig:
    """Settings of validation while training.

    Attributes:
        data: `scenes`, `nested`, folders with questions.jsonl and images, or several of them; of those with splits, `test`.
        limit: questions of each of `data`: of a folder at most so many, spread evenly over it.
        global_share: share of procedural questions that need no crop.
        match: when an answer is correct: `exact`, `wordnet` or `typed`, as in `evaluate`.
        temperature: temperature of sampling; 0 is greedy. Left out, the one that the model's episode names, 0 of most.
        batch_size: questions played at once, over all devices; 0 for as many as a training step has samples (SFT), or a part of
            a rollout has episodes (GRPO), whose compiled programs then play these too.
        seed: seed of the procedural questions and of sampling. `evaluate` has another one by default, so that a run is not judged
            by the questions that chose its best checkpoint.
        before_training: validate before the first step too, as step 0.
    """

    data: tuple[str, ...] = ("scenes",)
    limit: int = 256
    global_share: float = 0.15
    match: Literal["exact", "wordnet", "typed"] = "exact"
    temperature: float | None = None
    batch_size: int = 0
    seed: int = 100
    before_training: bool = True

    def __post_init__(self):
        if self.limit < 1 or self.batch_size < 0:
            raise UserError("validate config: limit must be positive, batch_size a number of questions or 0")
        SamplingConfig(self.temperature)  # refuses one that can't be


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What all training runs share.

    Attributes:
        model: the shipped model, model directory or run to start from.
        out: the run's directory.
        data: `scenes`, `nested` (scenes whose questions need up to two looks), folders with questions.jsonl and images, or several
            of them.
        images: how image files become 8-bit RGB (bands, stretch, limit).
        mix: share of each of `data`, in any unit; equal shares by default.
        workers: processes that make rows ahead, for large images; 0 makes them in threads of this one.
        global_share: share of procedural questions that need no crop.
        steps: optimizer steps of SFT, rollouts of GRPO.
        accumulate: microbatches that a step's samples or questions are cut into, to save memory.
        optimizer: AdamW's settings.
        lora: adapters that train instead of the model's own parameters; GRPO's reference is the model without them.
        compute: number types, attention backend, and what the backward pass recomputes.
        mesh: how devices and processes share the work.
        layout: slots and views other than the model's own, such as `--layout.prompt-len 640` for long questions.
        freeze_vision: keep the vision encoder as it is; in GRPO its tokens then come from the rollout.
        log: where metrics go beside metrics.jsonl: tensorboard, wandb, or both.
        profile: write an XProf trace of three steps after warm-up to OUT/profile.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        keep: checkpoints to keep, the last ones.
        keep_best: checkpoints to keep beside them, the best: those of the steps with the lowest losses (SFT) or the highest mean
            rewards (GRPO), or with `validate_every` those with the highest validation/accuracy.
        validate_every: steps between validations, the last step included; 0 for none.
        validate: what validation plays, and how.
        seed: random seed of the data's order, and of samples.
        strict: end at the first image that can't be read, instead of naming it and going on with the next question.
        resume: go on from the last checkpoint in `out`.
        overwrite: start anew where `out` holds a run.
    """

    verb: ClassVar[str] = "training"
    trains_for: ClassVar[str] = "loss"

    model: str = "nano"
    out: Path = Path("runs/training")
    data: tuple[str, ...] = ("scenes",)
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    mix: tuple[float, ...] = ()
    workers: int = 0
    global_share: float = 0.3
    steps: int = 100
    accumulate: int = 1
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
    validate_every: int = 0
    validate: ValidateConfig = ValidateConfig()
    seed: int = 0
    strict: bool = False
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self):
        if self.checkpoint_every < 1 or self.keep < 1 or self.keep_best < 0:
            self.refuse("checkpoint_every and keep must be positive, keep_best not negative")
        if self.accumulate < 1:
            self.refuse("accumulate must be positive")
        if self.validate_every < 0:
            self.refuse("validate_every must be a number of steps, or 0 for no validation")
        if self.keep_best and self.validate_every and self.checkpoint_every % self.validate_every:
            self.refuse("keep_best goes by the validation: checkpoint_every must be a multiple of validate_every")

    @property
    def best_by(self) -> str:
        """The metric that `keep_best` goes by."""
        return "validation/accuracy" if self.validate_every else self.trains_for

    def score(self, metrics: Mapping[str, float]) -> float | None:
        """The score of a step with these metrics for `keep_best`, higher is better; None where it was not validated."""
        return -metrics["loss"] if self.best_by == "loss" else metrics.get(self.best_by)

    def refuse(self, why: str) -> None:
        """Ends with one line about these settings.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.verb} config: {why}")


@dataclasses.dataclass(frozen=True)
class SFTConfig(TrainingConfig):
    """Settings of a fine-tuning run.

    Attributes:
        questions: size of the finite set of procedural questions.
        batch_size: samples per step, over all devices.
        pack_len: tokens of a packed row, which holds several samples; 0 for one sample a row, in fixed slots. The loss is
            the same.
    """

    verb: ClassVar[str] = "sft"

    out: Path = Path("runs/sft")
    questions: int = 512
    batch_size: int = 32
    pack_len: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.pack_len < 0:
            self.refuse("pack_len must be a number of tokens, or 0 for fixed rows")
        if self.accumulate > 1 and self.pack_len:
            self.refuse("accumulate must be 1 for packed rows")


@dataclasses.dataclass(frozen=True)
class GRPOConfig(TrainingConfig):
    """Settings of a GRPO run. The model that it starts from is also the reference policy.

    Attributes:
        prompts: questions per step, over all devices.
        compact: parts that the slots of a question and its episodes are cut into; the update computes only as many as the
            fullest question of the step fills. Each number of parts compiles once, when it comes up; 0 computes every slot.
        group: episodes per question (paper: 4).
        refill: how often a step may play as many further questions, whose groups take the places of those that teach nothing
            because their rewards are all the same (DAPO's dynamic sampling). What is still missing then is filled with such groups.
        curriculum: which questions are left out because the policy answers them too often or too seldom.
        updates: passes over each rollout (mu).
        minibatches: optimizer steps per pass: a rollout's questions are cut into that many batches.
        temperature: that of sampling, in all turns, and of the log-probabilities. (Top-k, top-p and a repetition penalty would
            draw from another distribution than the ratio is taken of.)
        rollout: the tool, who decides on a crop, what later turns read, in how many parts a step is played.
        objective: advantages, ratio, clipping, KL and how tokens add up.
        reward: weights and shapes of the rewards; `--reward paper` and `--reward reference` take a named spec, which further
            settings change.
        judge: how the judge of `reward.judge` is asked.
        panel_every: steps between panels of episodes in OUT/panels, as pictures and JSON; 0 for none.
        dump: steps between dumps of all episodes into OUT/rollouts, as JSON lines with thumbnails; 0 for none. The page that
            `zoomearth report OUT` makes shows them.
        dump_thumbnails: longest side in px of the thumbnails in a dump; 0 for none.
    """

    verb: ClassVar[str] = "grpo"
    trains_for: ClassVar[str] = "reward_total"

    model: str = "runs/sft"
    out: Path = Path("runs/grpo")
    global_share: float = 0.25
    steps: int = 130
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-4)
    prompts: int = 16
    compact: int = 0
    group: int = 8
    refill: int = 0
    curriculum: CurriculumConfig = CurriculumConfig()
    updates: int = 1
    minibatches: int = 1
    temperature: float = 1.0
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    reward: RewardSpec = RewardSpec(region_alpha=0.5, region_unit="side")
    judge: JudgeConfig = JudgeConfig()
    panel_every: int = 50
    dump: int = 0
    dump_thumbnails: int = 128

    def __post_init__(self):
        super().__post_init__()
        if self.group < 2:
            self.refuse("group must be at least 2, advantages compare samples of one question")
        if self.temperature <= 0:
            self.refuse("temperature must be positive")
        if self.refill < 0:
            self.refuse("refill must be a number of rounds, or 0 for none")
        if self.updates < 1 or self.minibatches < 1:
            self.refuse("updates and minibatches must be positive")
        if self.rollout.turn_ids == "retokenised" and self.objective.mask != "reference":
            self.refuse("rollout.turn_ids retokenised needs objective.mask reference: nobody sampled those ids")
        if self.rollout.ahead and not self.objective.importance_cap:
            self.refuse(
                "rollout.ahead plays one step off policy, which weights must correct; set objective.importance_cap, such as 2"
            )
        if self.rollout.weights == "int8" and not self.objective.importance_cap:
            self.refuse(
                "rollout.weights int8 needs objective.importance_cap (2 is usual): the trainer's weights are not the sampler's"
            )
        looks, lens = self.rollout.looks, self.layout.turn_lens
        if looks is not None and lens is not None and len(lens) != looks + 1:
            self.refuse(
                f"rollout.looks {looks} takes {looks + 1} turns, layout.turn_lens has {len(lens)}; give one of the two"
            )
        played, laid_out = self.rollout.view, self.layout.view
        if played != "model" and laid_out not in (None, played):
            self.refuse(f"rollout.view is {played}, layout.view {laid_out}; give one of the two")
        if self.compact < 0:
            self.refuse("compact must be a number of parts, or 0 to compute every slot")
        if self.panel_every < 0:
            self.refuse("panel_every must be a number of steps, or 0 for no panels")
        if self.dump < 0:
            self.refuse("dump must be a number of steps, or 0 for no dumps")
        if not 0 <= self.dump_thumbnails <= 1024:
            self.refuse("dump_thumbnails must be a side between 1 and 1024 px, or 0 for no thumbnails")

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps on each rollout."""
        return self.updates * self.minibatches

    def plays_ahead(self, step: int) -> bool:
        """Whether the episodes of the step after `step` others are played by the policy of the step before. After a checkpoint
        they aren't, so that a run that goes on from it plays the same ones."""
        return self.rollout.ahead and step < self.steps and step % self.checkpoint_every > 0
