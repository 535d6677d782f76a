"""Plays whole sets of questions through the one engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.georeference import Georeference, georeference_of
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.sharding import process_share
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.rl.rollout.engine import RolloutEngine, Trajectories
from zoomearth_jax.runs.start import look_ahead
from zoomearth_jax.terminal.progress import Progress
from zoomearth_jax.tools.tool import Tool
from zoomearth_jax.tools.zoom import MASK_LEVEL


class Guarded:
    """An image source that stands in for another: where that can't be read it shows grey, and `fault` says why.

    So a broken image changes neither a batch's shape nor what is sampled for the questions beside it.
    """

    def __init__(self, source: ImageSource):
        self._source, self.frame, self.fault = source, source.frame, ""

    @property
    def georeference(self) -> Georeference | None:
        """See `georeference_of`."""
        return georeference_of(self._source)

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


class Batch(NamedTuple):
    """A batch that was played.

    Attributes:
        places: those of its questions among all.
        trajectories: first those of the questions, then of what fills the batch up.
        seconds: since the batch before, or the beginning.
    """

    places: range
    trajectories: Trajectories
    seconds: float


def play_batches(
    engine: RolloutEngine,
    params,
    questions: Sequence[Question],
    key,
    *,
    sampling: SamplingConfig,
    tool: Tool,
    batch_size: int,
    seeds: Sequence[int] | None = None,
    label: str = "evaluate",
) -> Iterator[Batch]:
    """Plays questions in batches of one shape; the last one is filled up.

    Of several processes each plays its own questions, all as many.

    Args:
        batch_size: questions of this process played at once, rounded up to a multiple of its devices that share rows.
        seeds: a seed of each question, from which what is sampled for it follows; by default its place.
        label: text before the progress.
    """
    seeds = range(len(questions)) if seeds is None else seeds
    mesh = engine.mesh
    devices = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"] // process_share(mesh)[1]
    size = -(-min(batch_size, len(questions)) // devices) * devices
    batches = [range(start, min(start + size, len(questions))) for start in range(0, len(questions), size)]
    rows = [[*places, *[places[0]] * (size - len(places))] for places in batches]
    looks = look_ahead(([questions[place] for place in row] for row in rows), engine.look)
    began = time.perf_counter()
    with Progress(label, len(questions), quiet=jax.process_index() > 0) as progress:
        for places, row, look in zip(batches, rows, looks, strict=True):
            batch, chosen = [questions[place] for place in row], [seeds[place] for place in row]
            played = engine(params, batch, key, sampling=sampling, seeds=chosen, tool=tool, look=look)
            ended = time.perf_counter()
            yield Batch(places, played, ended - began)
            began = ended
            progress.update(len(places))


def play(engine: RolloutEngine, params, questions: Sequence[Question], key, **how) -> list[Episode]:
    """One episode of each question, see `play_batches`.

    A question's place among all is its seed, so that samples depend neither on the batch size nor on other questions.
    """
    batches = play_batches(engine, params, questions, key, **how)
    return [episode for batch in batches for episode in batch.trajectories.episodes[: len(batch.places)]]
