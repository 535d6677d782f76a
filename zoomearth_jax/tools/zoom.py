"""The zoom, the paper's tool: the box that a text names, read from the original at full resolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.data_pipeline.images.picture_map import PictureMap
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.text.protocol import wants_crop
from zoomearth_jax.tools.tool import Request, Shown, Tool, View, as_shown

if TYPE_CHECKING:  # it brings tokenizers, which `zoomearth tool` doesn't need
    from zoomearth_jax.data_pipeline.rows.builder import RowBuilder

MASK_LEVEL = 128  # grey of a masked picture


class Zoom:
    """Shows the window of the first box that a text names; unless the text answers too, where the episode's gate minds that.

    Where an episode has room for several pictures, boxes may be named inside one that was shown, and a wider view of the last
    one's place be asked for (docs/looks.md).
    """

    def __init__(self, rows: RowBuilder):
        """Takes the size of a window and of the view from the model's episode."""
        self._rows = rows

    def request(self, text: str, view: View) -> Request | str:
        """See `Tool`; the reasons are those of `ParsedLook`."""
        place = self._rows.looks.place(text, view.question.image.frame, shown_maps(self._rows, view.earlier))
        if isinstance(place, str):
            return place
        wanted = self._rows.episode.gate == "box" or wants_crop(text, self._rows.episode.several)
        return Request(wanted, place.box, place.window, source=place.source)

    def run(self, image: ImageSource, request: Request) -> np.ndarray:
        """See `Tool`."""
        assert request.window is not None  # each of its requests has one
        return self._rows.crop(image, request.window)


def shown_maps(rows: RowBuilder, requests: Sequence[Request]) -> list[PictureMap | None]:
    """The maps of the pictures that requests were answered with; None for a picture that shows more than its window."""
    windows = [request.window if request.shows_window else None for request in requests]
    return [None if window is None else rows.looks.picture_map(window) for window in windows]


class Oracle:
    """Decides by the reference whether the first turn is followed by a picture, as the released code does in training.

    Questions with a reference box get one in any case, of the whole image where no valid box is named; others never do. Later
    turns ask for themselves.
    """

    def __init__(self, tool: Tool, rows: RowBuilder):
        """Wraps a tool that shows windows."""
        self._tool, self._rows = tool, rows

    def request(self, text: str, view: View) -> Request | str:
        """See `Tool`."""
        asked = self._tool.request(text, view)
        if view.earlier:
            return asked
        needed = view.question.box is not None
        if isinstance(asked, Request):
            return dataclasses.replace(asked, wanted=needed)
        if not needed:
            return asked
        frame = view.question.image.frame
        whole = Box(0, 0, frame.width, frame.height, frame)
        return Request(True, None, self._rows.window(whole, frame), reason=asked)

    def run(self, image: ImageSource, request: Request) -> np.ndarray | Shown:
        """See `Tool`."""
        return self._tool.run(image, request)


class Masked:
    """Shows grey in place of every picture, to measure what pictures are worth."""

    def __init__(self, tool: Tool):
        """Wraps any tool."""
        self._tool = tool

    def request(self, text: str, view: View) -> Request | str:
        """See `Tool`."""
        return self._tool.request(text, view)

    def run(self, image: ImageSource, request: Request) -> np.ndarray | Shown:
        """See `Tool`."""
        shown = as_shown(self._tool.run(image, request))
        return shown._replace(picture=np.full_like(shown.picture, MASK_LEVEL))
