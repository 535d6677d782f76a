"""Plays all questions of a set in batches of one shape; images that can't be read are gone past."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.start import look_ahead
from zoomearth_jax.terminal.progress import tracked
from zoomearth_jax.tools.tool import Tool
from zoomearth_jax.tools.zoom import MASK_LEVEL


class Guarded:
    """An image source that stands in for another: where that can't be read it shows grey, and `fault` says why.

    So a broken image changes neither a batch's shape nor what is sampled for the questions beside it.
    """

    def __init__(self, source: ImageSource):
        self._source, self.frame, self.fault = source, source.frame, ""

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        """See `ImageSource.window`."""
        try:
            return self._source.window(box, size, exact)
        except (UserError, OSError) as error:
            self.fault = str(error)
            return np.full((size.height, size.width, 3), MASK_LEVEL, np.uint8)


def fault_of(question: Question) -> str:
    """Why a question's image can't be read; empty where it can, or hasn't been."""
    return getattr(question.image, "fault", "")


def play_batches(
    engine: RolloutEngine,
    params,
    questions: Sequence[Question],
    key,
    *,
    sampling: SamplingConfig,
    tool: Tool,
    batch_size: int,
) -> Iterator[list[Episode] | list[None]]:
    """Plays like `play`, one batch at a time. A batch where no image can be read isn't played: None in place of its episodes."""
    batch_size = min(batch_size, len(questions))
    starts = range(0, len(questions), batch_size)
    batches = [list(questions[start : start + batch_size]) for start in starts]
    counts = [len(batch) for batch in batches]
    batches[-1] += batches[-1][:1] * (batch_size - len(batches[-1]))
    looks = look_ahead(iter(batches), engine.look)
    for start, batch, count in zip(tracked(starts, "evaluate"), batches, counts, strict=True):
        look = next(looks)
        if all(map(fault_of, batch)):
            yield [None] * count
            continue
        seeds = range(start, start + batch_size)
        played = engine(params, batch, key, sampling=sampling, seeds=seeds, tool=tool, look=look)
        yield played.episodes[:count]


def play(engine: RolloutEngine, params, questions: Sequence[Question], key, **how) -> list[Episode]:
    """One episode of each question, in batches of one shape; the last is filled up and cut.

    A question's place among all is its seed, so that samples depend neither on the batch size nor on other questions.
    """
    return [episode for batch in play_batches(engine, params, questions, key, **how) for episode in batch if episode]
