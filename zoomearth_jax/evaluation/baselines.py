"""Ways of showing crops, to measure what crops are worth: each wraps the model's tool, and the engine knows nothing of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.tools.tool import Request, Shown, Tool, View
from zoomearth_jax.tools.zoom import Masked


class Empty:
    """Shows nothing: where a crop would follow, the turn's marks of a picture stand with nothing between them.

    So a model that names a box still gets its next turn, in which it can answer. Without the marks the next turn would go
    on from the very state in which the model ended the last one, and would end at once.
    """

    def __init__(self, tool: Tool):
        """Wraps any tool, which is never run."""
        self._tool = tool

    def request(self, text: str, view: View) -> Request | str:
        """See `Tool`."""
        return self._tool.request(text, view)

    def run(self, image: ImageSource, request: Request) -> np.ndarray:
        """See `Tool`."""
        return np.zeros((0, 0, 3), np.uint8)


class Reference:
    """Shows the window of the reference box after the first turn, whatever its text says: what perfect boxes would give.

    Questions without a reference box, and later turns, are served as they ask.
    """

    def __init__(self, tool: Tool, rows: RowBuilder):
        """Wraps a tool that shows windows."""
        self._tool, self._rows = tool, rows

    def request(self, text: str, view: View) -> Request | str:
        """See `Tool`; the request's box stays the one that the text names."""
        asked, box = self._tool.request(text, view), view.question.box
        if view.earlier or box is None:
            return asked
        window = self._rows.window(box, view.question.image.frame)
        if isinstance(asked, Request):
            return dataclasses.replace(asked, wanted=True, window=window)
        return Request(True, window=window, reason=asked)

    def run(self, image: ImageSource, request: Request) -> np.ndarray | Shown:
        """See `Tool`."""
        return self._tool.run(image, request)


class Elsewhere:
    """Shows a window of the same size at a random place, uniform over all places inside the image.

    The place follows from the row's seed and the number of the turn, so it depends neither on the batch nor on what the
    text says.
    """

    def __init__(self, tool: Tool):
        """Wraps a tool that shows windows."""
        self._tool = tool

    def request(self, text: str, view: View) -> Request | str:
        """See `Tool`; the request's box stays the one that the text names."""
        asked = self._tool.request(text, view)
        if isinstance(asked, str) or asked.window is None:
            return asked
        frame, (x1, y1, x2, y2) = view.question.image.frame, asked.window.corners
        width, height = x2 - x1, y2 - y1
        place = np.random.default_rng([view.seed, len(view.earlier)]).uniform(size=2)
        x, y = int(place[0] * (frame.width - width + 1)), int(place[1] * (frame.height - height + 1))
        return dataclasses.replace(asked, window=Box(x, y, x + width, y + height, frame))

    def run(self, image: ImageSource, request: Request) -> np.ndarray | Shown:
        """See `Tool`."""
        return self._tool.run(image, request)


# name -> function from the model's tool and its rows to the tool that is played with
CROPS: dict[str, Callable[[Tool, RowBuilder], Tool]] = {
    "shown": lambda tool, rows: tool,
    "masked": lambda tool, rows: Masked(tool),
    "none": lambda tool, rows: Empty(tool),
    "oracle": Reference,
    "random": lambda tool, rows: Elsewhere(tool),
}
