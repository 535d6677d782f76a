"""What a tool is: it reads a request out of a turn's text, and makes a picture of the image for it."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.questions.question import Question


@dataclasses.dataclass(frozen=True)
class Request:
    """What a turn's text asks for.

    Attributes:
        wanted: whether the tool is to run. A text may name a box and answer at once: then nothing more is shown.
        box: the area that the text names, in px of the view, whatever picture it was named on; None where it names none.
        window: the area of the original that the picture shows, in px of it; None where it shows no part of it.
        reason: what is wrong with the text where the tool runs all the same.
        source: what the box was named on: the `overview`, or an earlier `picture`; or `context`, a wider view of the last picture's
            place. Where an episode has room for one picture, always the overview.
    """

    shows_window: ClassVar[bool] = (
        True  # and nothing else, as the zoom does: later turns may name boxes inside the picture
    )

    wanted: bool
    box: Box | None = None
    window: Box | None = None
    reason: str = ""
    source: str = "overview"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one call of an image tool.

    Attributes:
        tool: its name, as it was called.
        text: what the tool says.
        error: why nothing came of it; empty where something did.
        record: where the result comes from, as JSON can hold it; None after an error.
        region, result: what the tool was handed and what it gave, to paste it; None after an error.
    """

    tool: str
    text: str = ""
    error: str = ""
    record: dict[str, Any] | None = None
    region: Any = dataclasses.field(default=None, repr=False, compare=False)
    result: Any = dataclasses.field(default=None, repr=False, compare=False)


class Shown(NamedTuple):
    """What a turn is answered with by a tool that has more to say than a picture.

    Attributes:
        picture: as of `Tool.run`.
        note: a text that the policy reads after the picture, as far as the layout has room for it.
        outcomes: for records and reports.
    """

    picture: np.ndarray
    note: str = ""
    outcomes: tuple[Outcome, ...] = ()


def as_shown(answer: np.ndarray | Shown) -> Shown:
    """What `Tool.run` gives, in one form."""
    return answer if isinstance(answer, Shown) else Shown(answer)


class View(NamedTuple):
    """What a text is read against.

    Attributes:
        question: the question with its image.
        frame: the overview's frame, in whose px boxes are written.
        earlier: the requests of earlier turns, all of which were served.
        seed: the row's, from which all that a tool draws must follow.
    """

    question: Question
    frame: Frame
    earlier: tuple[Request, ...] = ()
    seed: int = 0


class Tool(Protocol):
    """What the rollout needs of a tool. Both methods are called from threads."""

    def request(self, text: str, view: View) -> Request | str:
        """What a text asks for, or why it asks for nothing that the tool could do; whatever a text says, it never raises."""
        ...

    def run(self, image: ImageSource, request: Request) -> np.ndarray | Shown:
        """The picture, uint8 [h, w, 3], sides in multiples of a visual token and at most those of the view's canvas; or with it
        what is said of it. An empty one, [0, 0, 3], gives the row its next turn without a picture: the marks around one stand
        with nothing between them.

        Raises:
            UserError: the image can't be read.
        """
        ...
