"""The training loader: batches by their step's number, made ahead.

The questions of all steps are one endless order: each finite source shuffled anew every epoch, sources mixed by shares.
Step s of a run takes the places s x B … (s + 1) x B - 1; process p of n takes the p-th of n equal stretches of them. So a
batch follows only from settings and step: the step in a checkpoint is the loader's whole state, and a run goes on with the
same global batches on another number of hosts or workers.

A place whose image can't be read is taken by the next one of the order whose can: so batches follow from the order and the
broken images only, and keep their size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import grain
import numpy as np

from zoomearth_jax.data_pipeline.questions.mixture import Source
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.workers import BatchMaker, BrokenImages, KeptRows, Place, Pool
from zoomearth_jax.errors import UserError
from zoomearth_jax.terminal.progress import say

KEPT_STEPS = 8  # whose places are known exactly: more than are prepared ahead of the step in hand


def order(sources: Sequence[Source], seed: int, mix: Sequence[float] = ()) -> grain.MapDataset:
    """The endless order of a run: order[i] is the Place of its i-th question.

    Args:
        seed: random seed of the shuffles; each source and epoch has its own. Endless sources come in their own order.
        mix: share of each source, in any unit; equal shares without it. Shares hold in every stretch of the order, to
            within one question a source.

    Raises:
        UserError: not one positive share a source.
    """
    if mix and (len(mix) != len(sources) or not all(0 < share < np.inf for share in mix)):
        raise UserError(f"mix: give {len(sources)} positive shares, one for each of data, not {list(mix)}")
    streams = [_stream(number, source, seed) for number, source in enumerate(sources)]
    return streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, mix or None)


def _stream(number: int, source: Source, seed: int) -> grain.MapDataset:
    stream = grain.MapDataset.range(len(source.questions))
    if not source.endless:  # grain shuffles an epoch by seed + epoch; drawn seeds keep those of two runs apart
        stream = stream.shuffle(seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
    return stream.repeat().map(lambda index: Place(number, int(index)))


class Loader:
    """Makes the batches of a run ahead of their use. Use as a context manager; with workers, a script of your own needs the
    guard `if __name__ == "__main__":`, because spawned processes import it."""

    def __init__(
        self,
        sources: Sequence[Source],
        make: Callable[[list[Question]], Any],
        *,
        batch_size: int,
        seed: int,
        mix: Sequence[float] = (),
        workers: int = 0,
        keep_bytes: int = 0,
        process: tuple[int, int] = (0, 1),
        strict: bool = False,
    ):
        """Checks the settings; workers start with the first batch.

        Args:
            make: a batch from its questions, by value; picklable where there are workers.
            batch_size: questions per step, over all hosts.
            seed, mix: see `order`.
            workers: processes that make batches; 0 for threads of this one.
            keep_bytes: without workers, and with only finite sources, rows up to this size are kept for the epochs to
                come; `make` must then give (nested) NamedTuples of arrays.
            process: this host's number, and how many there are.
            strict: an image that can't be read ends the run; without it, it is said, and the run goes on without it.

        Raises:
            UserError: a batch that doesn't divide over the hosts, or bad shares.
        """
        index, count = process
        if batch_size < 1 or workers < 0:
            raise UserError("loader: batches must have at least one question, workers can't be negative")
        if batch_size % count:
            raise UserError(f"a batch of {batch_size} questions doesn't divide over {count} hosts; take a multiple")
        self._order = order(sources, seed, mix)
        self._batch_size, self._own = batch_size, batch_size // count
        self._offset = index * self._own
        self._maker = BatchMaker(sources, make)
        keep = keep_bytes and not workers and not any(source.endless for source in sources)
        self._pool = Pool(KeptRows(self._maker, keep_bytes) if keep else self._maker, workers)
        self._ahead = max(workers, 1) + 1
        self._strict = strict
        self._broken: dict[Place, str] = {}
        self._taken: dict[int, list[Place]] = {}

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        self._pool.__exit__(kind, *error)
        if self._broken and kind is None:
            say(f"warning: {len(self._broken)} questions were left out, their images can't be read (see above)")

    @property
    def digests(self) -> dict[str, str]:
        """Name -> hash of each source: a step is the loader's state as long as these stay."""
        return {source.name: source.digest() for source in self._maker.sources}

    def places(self, step: int) -> list[Place]:
        """Places of this host's questions of a step, as far as broken images are known.

        Raises:
            UserError: as many places in a row as a batch has are broken.
        """
        return [self._readable(position) for position in self._positions(step)]

    def _positions(self, step: int) -> range:
        first = step * self._batch_size + self._offset
        return range(first, first + self._own)

    def _readable(self, position: int) -> Place:
        for place in map(self._order.__getitem__, range(position, position + self._batch_size)):
            if place not in self._broken:
                return place
        raise UserError(f"{self._broken[place]}; nor can the {self._batch_size - 1} questions before it be read")

    def questions(self, step: int) -> list[Question]:
        """This host's questions of a step: those of its batch, if that was made."""
        return self._maker.questions(self._taken.get(step) or self.places(step))

    def replaced(self, step: int) -> int:
        """How many of this host's questions of a step stand for others, whose images can't be read."""
        taken = self._taken.get(step) or self.places(step)
        return sum(self._order[i] != place for i, place in zip(self._positions(step), taken, strict=True))

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """This host's batches of the steps start … stop - 1; at most workers + 1 of them (2 without) are made ahead.

        Raises:
            UserError: a question that can't be made into a row, naming it; a whole batch of broken images, or one if
                `strict`; or a worker that died.
        """
        waiting: deque[tuple[list[Place], Future]] = deque()
        steps = iter(range(start, stop))
        try:
            for step in range(start, stop):
                for ahead in steps:
                    waiting.append(self._submit(ahead))
                    if len(waiting) == self._ahead:
                        break
                yield self._made(step, *waiting.popleft())
        except BrokenProcessPool:
            raise UserError(
                "a data worker died, killed or out of memory; --resume goes on from the last checkpoint, "
                "fewer --workers need less memory"
            ) from None
        finally:
            for _, batch in waiting:
                batch.cancel()

    def _submit(self, step: int) -> tuple[list[Place], Future]:
        places = self.places(step)
        return places, self._pool.submit(places)

    def _made(self, step: int, places: list[Place], batch: Future) -> Any:
        """A step's batch; from other places where some turn out broken."""
        while True:
            try:
                made = batch.result()
            except BrokenImages as error:
                self._note(error.args[0])
                places, batch = self._submit(step)
                continue
            self._taken = {s: p for s, p in self._taken.items() if s >= step - KEPT_STEPS} | {step: places}
            return made

    def _note(self, broken: dict[Place, str]) -> None:
        for place, said in broken.items():
            if self._strict:
                raise UserError(said)
            if place not in self._broken:
                say(f"warning: {said}; the next question takes its place")
        self._broken |= broken
