"""Episodes made by hand."""

import numpy as np

from zoomearth_jax.rl.episode import Episode, Turn
from zoomearth_jax.tools.tool import Request

PICTURE = np.zeros((28, 28, 3), np.uint8)


def made_episode(first="", after=None, box=None, reason="", window=None, answer=None, truncated=False) -> Episode:
    """An episode of one turn, or with `after` of two: the first asked for the window of a box."""
    shown = after is not None
    request = None if box is None and not shown else Request(shown, box, window, reason)
    turns = [Turn(first, request, reason, PICTURE if shown else None)]
    return Episode((*turns, Turn(after)) if shown else tuple(turns), answer, truncated)
