"""The record that every stage works on."""

from __future__ import annotations

import dataclasses

from zoomearth_jax.data_pipeline.boxes import Box
from zoomearth_jax.data_pipeline.images import ImageSource

LEVELS = ("global", "region", "object")


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        image: what is looked at.
        text, answer: as a person writes them.
        level: global, region or object, as in LRS-GRO.
        box: the reference box in px of the original; None where the overview is enough.
        label: what the box shows.
        thoughts: reasoning before the crop (or before the answer), and after the crop; for fine-tuning.
        category: the kind of question, in any words.
        choices: the answers to choose from; none where any may be given.
    """

    image: ImageSource
    text: str
    answer: str
    level: str
    box: Box | None = None
    label: str = ""
    thoughts: tuple[str, str] = ("", "")
    category: str = ""
    choices: tuple[str, ...] = ()

    @property
    def asked(self) -> str:
        """What the model is asked: the text, and the choices if there are any."""
        return f"{self.text} Choices: {'; '.join(self.choices)}" if self.choices else self.text
