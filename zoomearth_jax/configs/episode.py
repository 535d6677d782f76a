"""How an episode is played, and the slots of its row.

An episode is a list of turns: the policy writes, is shown a picture, writes again, until it answers. Its row is
`[prompt | turn 1 | picture 1 | turn 2 | … | turn K]`, each slot of a fixed length. `RowLayout` is the only place that knows
where each slot begins.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

import numpy as np

from zoomearth_jax.configs.io import from_dict, read_json
from zoomearth_jax.configs.prune import PruneConfig
from zoomearth_jax.errors import UserError


def rounded(px: float, unit: int) -> int:
    """The longest side of a view in px: the nearest multiple of a visual token's side, as Qwen's processor has it (504 of 512
    px, 1,036 of 1,024)."""
    return max(1, round(px / unit)) * unit


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """Slots of a row with K turns. What follows the prompt is the reply, and offsets are those within the reply.

    Attributes:
        prompt_len: slots for the prompt with the overview's tokens.
        turn_lens: slots for what the policy writes in each turn, with its stop token; K numbers.
        view_side: side in px of the canvas that holds any overview, a multiple of merged_px.
        merged_px: side in px of the square that one visual token covers.
        picture_side: side in px of the canvas that holds any later picture; 0 for that of the overview.
        prune: which visual tokens take slots.
        note_len: slots after each picture for what a tool says of it.
    """

    prompt_len: int
    turn_lens: tuple[int, ...]
    view_side: int
    merged_px: int
    picture_side: int = 0
    prune: PruneConfig = PruneConfig()
    note_len: int = 0

    def __post_init__(self):
        object.__setattr__(self, "picture_side", self.picture_side or self.view_side)

    @property
    def num_turns(self) -> int:
        """K."""
        return len(self.turn_lens)

    @property
    def num_pictures(self) -> int:
        """K - 1: a picture follows each turn but the last."""
        return len(self.turn_lens) - 1

    @property
    def view_tokens(self) -> int:
        """Most visual tokens that an overview has (324 at 512 px)."""
        return self.prune.kept((self.view_side // self.merged_px) ** 2)

    @property
    def picture_tokens(self) -> int:
        """Most visual tokens that a later picture has."""
        return self.prune.kept((self.picture_side // self.merged_px) ** 2)

    @property
    def picture_len(self) -> int:
        """Slots for a picture with its start and end tokens and its note."""
        return self.picture_tokens + 2 + self.note_len

    @property
    def reply_len(self) -> int:
        """Slots after the prompt."""
        return sum(self.turn_lens) + self.num_pictures * self.picture_len

    @property
    def written_len(self) -> int:
        """Slots that the policy writes, those of all turns."""
        return sum(self.turn_lens)

    def turn(self, k: int) -> slice:
        """Slots of turn k, counted from 0, within the reply."""
        begin = sum(self.turn_lens[:k]) + k * self.picture_len
        return slice(begin, begin + self.turn_lens[k])

    def picture(self, k: int) -> slice:
        """Slots of the picture after turn k within the reply."""
        begin = self.turn(k).stop
        return slice(begin, begin + self.picture_len)

    def written(self) -> np.ndarray:
        """Indices within the reply of the slots that the policy writes, int [written_len]."""
        return np.concatenate([np.arange(self.turn(k).start, self.turn(k).stop) for k in range(self.num_turns)])


@dataclasses.dataclass(frozen=True)
class EpisodeConfig:
    """How an episode is played: views, turns, and the words of the prompt. It is saved as `episode.json` beside a model.

    The defaults are the paper's two turns. They hold LRS-GRO in Qwen's vocabulary: prompts of up to 436 tokens, and the
    longest of its sample replies, 251 before and 147 after a crop, 556 without one.

    Attributes:
        view_px: longest side of the overview as the model sees it.
        picture_px: longest side of a crop as the model sees it; 0 for view_px.
        box_px: longest side of the picture in whose px boxes are written, with one scale for both axes; 0 for the overview as
            the model sees it, whose sides are rounded to whole visual tokens.
        gate: when a turn is followed by a crop: if it names a box and is `unanswered`; or, as the released evaluation does, if
            it names a `box`, whatever else it says. Its text is then cut at `<answer>`, and its answer counts where no later
            turn gives one. GRPO on sampled ids plays `unanswered`.
        temperature, repetition_penalty: of evaluation and of asking, unless others are given (see `SamplingConfig`).
        min_window_px: a crop's shortest side in px of the original (paper: 512).
        inner_window_px: a crop's shortest side where its box was named inside a picture, not on the overview; 0 for min_window_px.
        crop: how a box becomes its window: `grow` each shorter side to min_window_px and shift the window inside the image;
            or, as in the released code (`reference`), where either side is shorter take the square of min_window_px around
            the centre, which cuts long boxes.
        view: the picture of a window: a `crop` of it; `foveated`: the whole image with the window enlarged to half of its sides;
            `context`: a crop of twice its sides. Rewards score the window itself in each case.
        prompt_len: slots for the prompt with the overview's tokens.
        turn_lens: slots for what the policy writes in each turn, with its stop token. Their number is that of the turns: one
            more than the pictures that an episode may ask for.
        system: the system message; none if empty.
        instruction: appended to every question; or, where it holds {question}, the text that the question is put into. Where it
            spells the chat's own marks (<|im_start|>) too, it is the whole prompt as it stands, and no chat template is asked.
    """

    view_px: int = 512
    picture_px: int = 0
    box_px: int = 0
    gate: Literal["unanswered", "box"] = "unanswered"
    temperature: float = 0.0
    repetition_penalty: float = 1.0
    min_window_px: int = 512
    inner_window_px: int = 0
    crop: Literal["grow", "reference"] = "grow"
    view: Literal["crop", "foveated", "context"] = "crop"
    prompt_len: int = 576
    turn_lens: tuple[int, ...] = (640, 256)
    system: str = ""
    instruction: str = ""

    def __post_init__(self):
        object.__setattr__(self, "turn_lens", tuple(self.turn_lens))
        for name in ("view_px", "min_window_px", "prompt_len"):
            if getattr(self, name) <= 0:
                raise UserError(f"episode config: {name} must be positive, not {getattr(self, name)}")
        for name in ("picture_px", "box_px", "inner_window_px"):
            if getattr(self, name) < 0:
                raise UserError(f"episode config: {name} must be positive, or 0, not {getattr(self, name)}")
        if not (self.temperature == 0 or 1e-6 <= self.temperature < math.inf):
            raise UserError(f"episode config: temperature must be 0 or at least 1e-6, not {self.temperature}")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(f"episode config: repetition_penalty must be positive, not {self.repetition_penalty}")
        for name, known in (
            ("crop", ("grow", "reference")),
            ("gate", ("unanswered", "box")),
            ("view", ("crop", "foveated", "context")),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"episode config: {name} must be {' or '.join(known)}, not {getattr(self, name)!r}")
        if not self.turn_lens or min(self.turn_lens) <= 0:
            raise UserError(
                f"episode config: turn_lens must be positive, one number a turn, not {list(self.turn_lens)}"
            )

    @property
    def several(self) -> bool:
        """Whether there is room for several pictures, so that turns may look on from what they were shown."""
        return len(self.turn_lens) > 2

    def least_window(self, source: str) -> int:
        """A crop's shortest side in px of the original.

        Args:
            source: what its box was named on: `overview` or `picture`.
        """
        return self.inner_window_px or self.min_window_px if source == "picture" else self.min_window_px

    def layout(self, merged_px: int, prune: PruneConfig = PruneConfig()) -> RowLayout:
        """The slots of its rows.

        Args:
            merged_px: side in px of the square that one visual token of the model covers.
            prune: see `RowLayout`.

        Raises:
            UserError: the prompt's slot has no room for a question beside the overview.
        """
        view_side, picture_side = (rounded(px, merged_px) for px in (self.view_px, self.picture_px or self.view_px))
        layout = RowLayout(self.prompt_len, self.turn_lens, view_side, merged_px, picture_side, prune)
        if self.prompt_len <= layout.view_tokens:
            raise UserError(
                f"episode config: prompt_len ({self.prompt_len}) must exceed the {layout.view_tokens} tokens of an overview "
                f"of {self.view_px} px; {layout_flags(prompt_len=layout.view_tokens + 128)} leaves 128 for the question"
            )
        return layout


def turns_of(turn_lens: tuple[int, ...], looks: int) -> tuple[int, ...]:
    """Slots of turns for at most so many pictures: the first turn's length is repeated, or turns before the last are left out."""
    missing = looks + 1 - len(turn_lens)
    if missing >= 0:
        return turn_lens[:1] * missing + turn_lens
    return turn_lens[:looks] + turn_lens[-1:] if looks else turn_lens[:1]


QUESTION = "{question}"  # its place in an instruction
CHAT_MARK = "<|im_start|>"  # an instruction that spells it is a whole prompt
EPISODE = "episode.json"  # beside a model's weights


def read_episode(directory: Path) -> EpisodeConfig | None:
    """The episode of a model directory; None without an episode.json, as of published checkpoints.

    Raises:
        UserError: a broken file, or one of a version whose rows had two stages.
    """
    file = Path(directory) / EPISODE
    saved = read_json(file, {})
    if old := {"stage1_len", "stage2_len"} & saved.keys():
        lens = [saved.get("stage1_len", 640), saved.get("stage2_len", 256)]
        raise UserError(
            f'{file}: {" and ".join(sorted(old))} are of an older version; put "turn_lens": {lens} in their place, and leave '
            "merged_px out"
        )
    return from_dict(EpisodeConfig, saved, str(file)) if saved else None


@dataclasses.dataclass(frozen=True)
class LayoutConfig:
    """What is changed of the model's own episode (see `EpisodeConfig`); a run is saved with the result.

    Attributes:
        view_px: longest side of the overview as the model sees it.
        picture_px: longest side of a crop as the model sees it; 0 for view_px.
        prompt_len: slots for the prompt with the overview's tokens; by default as much room beside the overview as before.
        turn_lens: slots for what is written in each turn: two numbers for the paper's one crop, three for two, and so on; one for
            a passive view without crops.
        min_window_px: a crop's shortest side in px of the original.
        inner_window_px: a crop's shortest side where its box was named inside a picture, not on the overview; 0 for min_window_px.
        view: the picture of a window: a `crop` of it; `foveated`: the whole image with the window enlarged; `context`: a crop of
            twice its sides.
    """

    view_px: int | None = None
    picture_px: int | None = None
    prompt_len: int | None = None
    turn_lens: tuple[int, ...] | None = None
    min_window_px: int | None = None
    inner_window_px: int | None = None
    view: Literal["crop", "foveated", "context"] | None = None

    def of(self, episode: EpisodeConfig, merged_px: int) -> EpisodeConfig:
        """The episode with these changes.

        Args:
            merged_px: side in px of the square that one visual token of the model covers.

        Raises:
            UserError: they don't go together.
        """
        changes = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        if self.view_px is not None and self.prompt_len is None:
            before, after = ((px // merged_px) ** 2 for px in (episode.view_px, self.view_px))
            changes["prompt_len"] = episode.prompt_len + after - before
        return dataclasses.replace(episode, **changes)


def layout_flags(**slots: int | tuple[int, ...]) -> str:
    """The arguments that set slots of an episode, as they are typed: `--layout.prompt-len 61`."""

    def words(value) -> str:
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return " ".join(f"--layout.{name.replace('_', '-')} {words(value)}" for name, value in slots.items())
