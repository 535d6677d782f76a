"""From a turn's text to the window that it is shown, and from a question's looks to the texts that ask for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, crop_window, view_size, wider
from zoomearth_jax.data_pipeline.images.picture_map import PictureMap, crop_map, fovea_map, frames_of
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.data_pipeline.questions.records import one_line
from zoomearth_jax.data_pipeline.text.protocol import (
    parse_box,
    parse_look,
    render_answer,
    render_context,
    render_look,
)
from zoomearth_jax.errors import UserError

CONTEXT = 2  # how many times as long as its window's the sides of a view with context are


class Place(NamedTuple):
    """What a text asks to be shown.

    Attributes:
        box: the area that it names, in px of the frame that boxes on the overview are written in.
        window: what is read for it, in px of the original.
        source: as of `Request`.
    """

    box: Box
    window: Box
    source: str


@dataclasses.dataclass(frozen=True)
class Looks:
    """How the looks of an episode are written, read and shown.

    Attributes:
        episode: its settings.
        merged_px: side in px of the square that one visual token of the model covers.
    """

    episode: EpisodeConfig
    merged_px: int

    def box_frame(self, image: Frame) -> Frame:
        """See `RowBuilder.box_frame`."""
        if not self.episode.box_px:
            return view_size(image.width, image.height, self.episode.view_px, self.merged_px)
        scale = self.episode.box_px / max(image.width, image.height)
        return Frame(image.width * scale, image.height * scale)  # type: ignore[arg-type]  # fractions of px

    def window(self, box: Box, image: Frame, source: str = "overview") -> Box:
        """See `RowBuilder.window`."""
        return crop_window(box.to(image), self.episode.least_window(source), self.episode.crop)

    def picture_map(self, window: Box) -> PictureMap:
        """The map of the picture that is shown for a window, by the episode's `view`."""
        if self.episode.view == "foveated":
            return fovea_map(window, self._size(window.frame.width, window.frame.height))
        shown = wider(window, CONTEXT) if self.episode.view == "context" else window
        crop = crop_map(shown, self._size(shown.x2 - shown.x1, shown.y2 - shown.y1))
        return dataclasses.replace(crop, window=window)

    def _size(self, width: float, height: float) -> Frame:
        return view_size(width, height, self.episode.picture_px or self.episode.view_px, self.merged_px)

    def place(self, text: str, image: Frame, shown: Sequence[PictureMap | None]) -> Place | str:
        """What a text asks to be shown, or the reason why that is nothing; whatever the text says, it never raises.

        Args:
            image: the original's frame.
            shown: maps of the pictures before; None for one whose px have no place in the original.
        """
        view = self.box_frame(image)
        if not self.episode.several:
            parsed = parse_box(text, view)
            return Place(parsed.box, self.window(parsed.box, image), "overview") if parsed.box else parsed.reason
        look = parse_look(text, view, frames_of(shown))
        if look.reason:
            return look.reason
        last = None if look.picture is None else shown[look.picture]
        if last is None:
            assert look.box is not None
            return Place(look.box, self.window(look.box, image), "overview")
        if look.box is None:
            window = wider(last.window, look.context)
            return Place(window.to(view), window, "context")
        box = last.to_original(look.box)
        return Place(box.to(view), self.window(box, image, "picture"), "picture")

    def references(self, question: Question) -> list[tuple[str, Box | None]]:
        """What fine-tuning imitates in each turn: the looks of the reference, each with the window that this very text asks for,
        then its answer, with None.

        Raises:
            UserError: a look inside the last picture whose middle that doesn't show.
        """
        image, turns, shown = question.image.frame, list[tuple[str, Box | None]](), list[PictureMap | None]()
        for number, look in enumerate(question.looks, 1):
            text = self._written(question, number, look, shown)
            place = self.place(text, image, shown)
            window = None if isinstance(place, str) else place.window
            shown.append(None if window is None else self.picture_map(window))
            turns.append((text, window))
        return [*turns, (render_answer(question.thought, question.answer), None)]

    def _written(self, question: Question, number: int, look: Look, shown: Sequence[PictureMap | None]) -> str:
        if look.source == "context":
            return render_context(look.thought, look.context, look.label)
        if look.source == "overview":
            taught = taught_box(look.box, self.box_frame(question.image.frame))
            return render_look(look.thought, taught, look.label)
        last = shown[-1] if shown else None
        x, y = (look.box.x1 + look.box.x2) / 2, (look.box.y1 + look.box.y2) / 2
        if last is None or not last.shows(x, y):
            seen = "there is none" if last is None else f"it shows {list(map(round, last.area.corners))}"
            corners = list(map(round, look.box.corners))
            raise UserError(
                f"question {one_line(question.text[:60])!r} look {number}: the middle of its box {corners} "
                f'is not inside the last picture: {seen}; leave its "source" out, or widen the look before'
            )
        return render_look(look.thought, taught_box(last.to_picture(look.box), last.frame), look.label, look.source)


def taught_box(box: Box, view: Frame) -> Box:
    """A reference box as it is taught: whole px of the view. A side that rounds to nothing becomes the px that its middle is in,
    the least that the protocol can say; the window of what is taught always holds the middle of the box."""
    seen = box.to(view)
    (x1, x2), (y1, y2) = _pixels(seen.x1, seen.x2, view.width), _pixels(seen.y1, seen.y2, view.height)
    return Box(x1, y1, x2, y2, view)


def _pixels(low: float, high: float, side: int) -> tuple[int, int]:
    start, stop = (min(max(round(edge), 0), side) for edge in (low, high))
    if start < stop:
        return start, stop
    middle = min(max(int((low + high) / 2), 0), side - 1)
    return middle, middle + 1
