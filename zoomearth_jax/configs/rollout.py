"""How episodes are played in GRPO: who decides on a crop, which ids go on, and how the work is cut."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zoomearth_jax.configs.episode import EpisodeConfig, turns_of
from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How GRPO plays its episodes. The defaults are the paper's; `reference` and the like are the released code's ways.

    Attributes:
        tool: what a turn's text can ask for: `zoom`, or another that is registered in `zoomearth_jax/tools`.
        crop_gate: who decides on a crop: the `model`, by naming a valid box, or an `oracle`: questions with a reference box
            get one in any case, of the whole image where no valid box is named, and others never.
        turn_ids: what later turns and the update read of a turn that was followed by a picture: the ids as `sampled`, or its text
            up to an answer, `retokenised`, without a stop token. Nobody sampled these, so the objective's mask must be
            `reference`.
        looks: pictures that an episode may ask for at most; the layout gets one turn more than that, each as long as the model's
            first. Left out, as many as the model was trained with; 0 for a passive view.
        crop: the window of a box, see `EpisodeConfig`; `model` keeps what the model was fine-tuned with.
        view: the picture of a window, see `EpisodeConfig`; `model` keeps what the model was trained with.
        mask_crop: show grey in place of every crop, to measure what crops are worth.
        batches: parts that a step's questions are played in, one after the other; the rewards of each are computed while
            the next plays, and a rollout's cache is as much smaller.
        ahead: a step's episodes are played while the step before updates, by the policy from before that update: one step off
            policy, which the objective's `importance_cap` corrects. The first step's, and those after a checkpoint, are on policy.
        weights: what tokens are decoded with: the model's weights in the `compute` type, or `int8` kernels in the decoder's layers
            (`models/quantize.py`), made once a rollout. Prompts and pictures are read with exact weights, and so is the
            update: the sampler's probabilities are not the trainer's, and the objective's importance_cap must be set.
        visit: tokens per row between two looks of the host, which then starts to run tools and leaves out rows that stopped.
        bucket: slots by which the caches grow while a turn is written: those that no row has reached yet aren't read. Each size
            has a program of its own; 0 is all slots at once.
    """

    tool: str = "zoom"
    crop_gate: Literal["model", "oracle"] = "model"
    turn_ids: Literal["sampled", "retokenised"] = "sampled"
    looks: int | None = None
    crop: Literal["model", "grow", "reference"] = "model"
    view: Literal["model", "crop", "foveated", "context"] = "model"
    mask_crop: bool = False
    batches: int = 1
    ahead: bool = False
    weights: Literal["compute", "int8"] = "compute"
    visit: int = 32
    bucket: int = 128

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if get_origin(hint) is Literal and value not in (choices := get_args(hint)):
                raise UserError(f"rollout config: {field.name} must be {' or '.join(choices)}, not {value!r}")
        if self.batches < 1 or self.visit < 1:
            raise UserError("rollout config: batches and visit must be positive")
        if self.looks is not None and self.looks < 0:
            raise UserError("rollout config: looks must be a number of pictures, or 0 for a passive view")
        if self.bucket < 0:
            raise UserError("rollout config: bucket must be a number of slots, or 0 for all at once")

    def of(self, episode: EpisodeConfig) -> EpisodeConfig:
        """The episode as it is played: the model's with this rollout's number of looks, its windows and its views."""
        changes: dict[str, Any] = {} if self.crop == "model" else {"crop": self.crop}
        if self.view != "model":
            changes["view"] = self.view
        if self.looks is not None:
            changes["turn_lens"] = turns_of(episode.turn_lens, self.looks)
        return dataclasses.replace(episode, **changes)
