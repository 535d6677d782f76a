"""What an episode looks like: the views, the row's slots and the words of the prompt."""

from __future__ import annotations

import dataclasses
from typing import Literal

from zoomearth_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EpisodeConfig:
    """Fixed slots `[prompt | stage 1 | crop | stage 2]` of a row, and the views in it.

    The defaults hold LRS-GRO in Qwen's vocabulary: prompts of up to 436 tokens, and the longest of its sample replies, 251
    before and 147 after a crop, 556 without one.

    Attributes:
        view_px: longest side of the overview and of a crop as the model sees them.
        min_window_px: a crop's shortest side in px of the original (paper: 512).
        crop: how a box becomes its window: `grow` each shorter side to min_window_px and shift the window inside the image;
            or, as in the released code (`reference`), where either side is shorter take the square of min_window_px around
            the centre, which cuts long boxes.
        prompt_len: slots for the prompt with the overview's tokens.
        stage1_len: slots for what the policy says before the crop, with its stop token.
        stage2_len: slots for what it says after the crop, with its stop token.
        merged_px: side of the square that one visual token covers.
        system: the system message; none if empty.
        instruction: appended to every question.
    """

    view_px: int = 512
    min_window_px: int = 512
    crop: Literal["grow", "reference"] = "grow"
    prompt_len: int = 576
    stage1_len: int = 640
    stage2_len: int = 256
    merged_px: int = 28
    system: str = ""
    instruction: str = ""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type == "int" and getattr(self, field.name) <= 0:
                raise UserError(f"episode config: {field.name} must be positive, not {getattr(self, field.name)}")
        if self.crop not in ("grow", "reference"):
            raise UserError(f"episode config: crop must be grow or reference, not {self.crop!r}")
        if self.prompt_len <= self.view_tokens:
            raise UserError(
                f"episode config: prompt_len ({self.prompt_len}) must exceed the {self.view_tokens} tokens of an overview of "
                f"{self.view_px} px; {layout_flags(prompt_len=self.view_tokens + 128)} leaves 128 for the question"
            )

    @property
    def view_side(self) -> int:
        """Side in px of the canvas that holds any view: view_px rounded down to whole tokens."""
        return self.view_px // self.merged_px * self.merged_px

    @property
    def view_tokens(self) -> int:
        """Most visual tokens a view has (324 at 512 px)."""
        return (self.view_side // self.merged_px) ** 2

    @property
    def crop_len(self) -> int:
        """Slots for a crop with its start and end tokens."""
        return self.view_tokens + 2

    @property
    def reply_len(self) -> int:
        """Slots after the prompt."""
        return self.stage1_len + self.crop_len + self.stage2_len


@dataclasses.dataclass(frozen=True)
class LayoutConfig:
    """What is changed of the model's own episode (see `EpisodeConfig`); a run is saved with the result.

    Attributes:
        view_px: longest side of the overview and of a crop as the model sees them.
        prompt_len: slots for the prompt with the overview's tokens.
        stage1_len: slots for what is said before the crop.
        stage2_len: slots for what is said after the crop.
    """

    view_px: int | None = None
    prompt_len: int | None = None
    stage1_len: int | None = None
    stage2_len: int | None = None

    def of(self, episode: EpisodeConfig) -> EpisodeConfig:
        """The episode with these changes.

        Raises:
            UserError: they don't go together.
        """
        return dataclasses.replace(episode, **{k: v for k, v in dataclasses.asdict(self).items() if v is not None})


def layout_flags(**slots: int) -> str:
    """The arguments that set slots of an episode, as they are typed: `--layout.prompt-len 61`."""
    return " ".join(f"--layout.{name.replace('_', '-')} {number}" for name, number in slots.items())
