"""What one sample did: its turns, each with what it wrote, asked for and was shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.data_pipeline.text.protocol import parse_answer
from zoomearth_jax.tools.tool import Outcome, Request


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn.

    Attributes:
        text: what the policy wrote.
        request: what it asked for; None where nothing that the tool could do. It may be one that wasn't `wanted`.
        reason: why it asked for nothing; of the zoom see `ParsedBox`. Empty in the last turn that a row has room for.
        picture: what it was shown, uint8 [h, w, 3]; None in the last turn.
        note: what it read after the picture; empty where a tool said nothing.
        outcomes: what came of the image tools that it called.
    """

    text: str
    request: Request | None = None
    reason: str = ""
    picture: np.ndarray | None = dataclasses.field(default=None, compare=False)
    note: str = ""
    outcomes: tuple[Outcome, ...] = ()


@dataclasses.dataclass(frozen=True)
class Episode:
    """The turns of one sample.

    Attributes:
        turns: at least one.
        answer: the final answer, that of the last turn; None without one.
        truncated: whether a turn ran out of its slot.
    """

    turns: tuple[Turn, ...]
    answer: str | None
    truncated: bool

    @property
    def texts(self) -> list[str]:
        """What was written, one text per turn."""
        return [turn.text for turn in self.turns]

    @property
    def looks(self) -> list[Request]:
        """The requests that were answered with a picture."""
        return [turn.request for turn in self.turns if turn.request and turn.picture is not None]

    @property
    def pictures(self) -> list[np.ndarray]:
        """The pictures that it was shown, uint8."""
        return [turn.picture for turn in self.turns if turn.picture is not None]

    @property
    def boxes(self) -> list[Box]:
        """All boxes that it named, in px of the view."""
        return [turn.request.box for turn in self.turns if turn.request and turn.request.box]

    @property
    def zoomed(self) -> bool:
        """Whether it saw a picture beside the overview."""
        return bool(self.looks)

    @property
    def box(self) -> Box | None:
        """The box of the last picture that it saw, or without pictures the last one that it named, in px of the view; None
        where there is no valid one."""
        named = self.looks or [turn.request for turn in self.turns if turn.request]
        return named[-1].box if named else None

    @property
    def box_reason(self) -> str:
        """The reason why the first turn with a broken box has none; else why the first turn named none."""
        broken = (turn.reason for turn in self.turns if turn.reason not in ("", "absent"))
        return next(broken, self.turns[0].reason)

    @property
    def window(self) -> Box | None:
        """What the last picture shows, in px of the original; None without one."""
        return self.looks[-1].window if self.looks else None


def final_answer(texts: Sequence[str], gate: str) -> str | None:
    """The answer of the last turn's text; with the gate `box` (see `EpisodeConfig`), of the last text that gives one."""
    if gate != "box":
        return parse_answer(texts[-1])
    answers = [parse_answer(text) for text in reversed(texts)]
    return next((answer for answer in answers if answer is not None), None)
