"""The record that fine-tuning, GRPO and evaluation work on."""

from __future__ import annotations

import dataclasses
from typing import Literal

from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.data_pipeline.images.sources import ImageSource

LEVELS = ("global", "region", "object")


@dataclasses.dataclass(frozen=True)
class Look:
    """A closer look that the reference takes.

    Attributes:
        box: in px of the original, whatever picture it is named on. Of a wider view the place of the look before, grown.
        label: what the box shows.
        thought: the reasoning before it; for fine-tuning.
        source: what the box is to be named on: the `overview`, or the last `picture`; or `context`: a wider view of the last
            picture's place.
        context: how many times as long the sides of a wider view are.
    """

    box: Box
    label: str = ""
    thought: str = ""
    source: Literal["overview", "picture", "context"] = "overview"
    context: float = 0.0


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        image: what is looked at.
        text, answer: as a person writes them.
        level: global, region or object, as in LRS-GRO.
        looks: the reference's looks, in order; none where the overview is enough.
        thought: the reasoning before the answer; for fine-tuning.
        category: the kind of question, in any words.
        choices: the answers to choose from; none where any may be given.
        boxes: all that the question asks about, in px of the original, where an answer may list several boxes; rewards compare
            them, fine-tuning doesn't teach them.
    """

    image: ImageSource
    text: str
    answer: str
    level: str
    looks: tuple[Look, ...] = ()
    thought: str = ""
    category: str = ""
    choices: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()

    @property
    def box(self) -> Box | None:
        """The reference box, that of the last look, in px of the original; None where the overview is enough."""
        return self.looks[-1].box if self.looks else None

    @property
    def asked(self) -> str:
        """What the model is asked: the text, and the choices if there are any."""
        return f"{self.text} Choices: {'; '.join(self.choices)}" if self.choices else self.text
