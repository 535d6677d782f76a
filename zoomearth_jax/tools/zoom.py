"""The zoom, the paper's tool: the box that a text names, read from the original at full resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.text.protocol import parse_box, wants_crop
from zoomearth_jax.tools.tool import Request, Shown, Tool, View, as_shown

if TYPE_CHECKING:  # it brings tokenizers, which `zoomearth tool` doesn't need
    from zoomearth_jax.data_pipeline.rows.builder import RowBuilder

MASK_LEVEL = 128  # grey of a masked picture


class Zoom:
    """Shows the window of the first box that a text names; unless the text answers too, where the episode's gate minds that."""

    def __init__(self, rows: RowBuilder):
        """Takes the size of a window and of the view from the model's episode."""
        self._rows = rows

    def request(self, text: str, view: View) -> Request | str:
        """See `Tool`; the reasons are those of `ParsedBox`."""
        parsed = parse_box(text, view.frame)
        if parsed.box is None:
            return parsed.reason
        window = self._rows.window(parsed.box, view.question.image.frame)
        wanted = self._rows.episode.gate == "box" or wants_crop(text)
        return Request(wanted, parsed.box, window)

    def run(self, image: ImageSource, request: Request) -> np.ndarray:
        """See `Tool`."""
        assert request.window is not None  # each of its requests has one
        return self._rows.crop(image, request.window)


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
            return Request(needed, asked.box, asked.window, asked.reason)
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
