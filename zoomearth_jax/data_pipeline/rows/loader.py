"""The training loader: batches by their step's number, made ahead.

The questions of all steps are one endless order: each finite source shuffled anew every epoch, sources mixed by shares.
Step s of a run takes the places s x B … (s + 1) x B - 1; process p of n takes the p-th of n equal stretches of them. So a
batch follows only from settings and step: the step in a checkpoint is the loader's whole state, and a run goes on with the
same global batches on another number of hosts or workers.

A place whose image can't be read is taken by the next one of the order whose can: so batches follow from the order and the
broken images only, and keep their size.

Beside its stretch each step has spare ones, far off in the same order, which no other step takes: for the questions of refills
(GRPO plays further ones in place of groups that teach nothing), and in place of questions that are passed over. So the step
stays the whole state. These questions come beside the epochs, in which each is asked once.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import grain
import numpy as np

from zoomearth_jax.data_pipeline.questions.mixture import Source
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.workers import BatchMaker, BrokenImages, KeptRows, Place, Pool
from zoomearth_jax.errors import UserError
from zoomearth_jax.terminal.progress import say

KEPT_STEPS = 8  # whose places are known exactly: more than are prepared ahead of the step in hand
FAR = 2**30  # where the spare stretches begin: no run comes so far, and endless questions are twice as many
SPARE = 8  # batches in a spare stretch
LAG = 16  # steps after which a measured pass rate counts: more than are prepared ahead


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
        refills: int = 0,
        passed_over: Callable[[Place, int], bool] | None = None,
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
            refills: batches of further questions that a step may ask for, at most.
            passed_over: (place, step) -> whether a step should leave that question out, by what is known `LAG` steps before it.
                Questions of a step are distinct then, and others of its spare stretch are asked in place of those left out; where
                the stretch has too few, some are asked in any case.

        Raises:
            UserError: a batch that doesn't divide over the hosts, or bad shares.
        """
        index, count = process
        if batch_size < 1 or workers < 0:
            raise UserError("loader: batches must have at least one question, workers can't be negative")
        if batch_size % count:
            raise UserError(f"a batch of {batch_size} questions doesn't divide over {count} hosts; take a multiple")
        # of a small set a place takes a millisecond
        self._place = functools.lru_cache(4096)(order(sources, seed, mix).__getitem__)
        self._batch_size, self._own = batch_size, batch_size // count
        self._offset = index * self._own
        self._maker = BatchMaker(sources, make)
        keep = keep_bytes and not workers and not any(source.endless for source in sources)
        self._pool = Pool(KeptRows(self._maker, keep_bytes) if keep else self._maker, workers)
        self._ahead = max(workers, 1) + 1 if passed_over is None else min(max(workers, 1) + 1, LAG - 2)
        self._strict, self._refills, self._passed_over = strict, refills, passed_over
        self._broken: dict[Place, str] = {}
        self._taken: dict[tuple[int, int], list[Place]] = {}

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

    def places(self, step: int, refill: int = 0) -> list[Place]:
        """Places of this host's questions of a step, as far as broken images are known.

        Args:
            refill: 0 for the step's own batch, r for its r-th batch of further questions.

        Raises:
            UserError: as many places in a row as a batch has are broken.
        """
        return [self._readable(position) for position in self._positions(step, refill)]

    def taken(self, step: int, refill: int = 0) -> list[Place]:
        """As `places`; of a batch that was made lately those that it was made of."""
        return self._taken.get((step, refill)) or self.places(step, refill)

    def _positions(self, step: int, refill: int = 0) -> Sequence[int]:
        return self._all_positions(step, refill)[self._offset : self._offset + self._own]

    def _all_positions(self, step: int, refill: int) -> list[int]:
        """Positions of all hosts' questions of a step."""
        size = self._batch_size
        spare = FAR + (step * (self._refills + 1) + refill) * SPARE * size
        near = itertools.chain(self._stretch(step) if not refill else (), range(spare, spare + SPARE * size))
        if self._passed_over is None:
            return list(itertools.islice(near, size))
        seen = {self._place(i) for r in range(refill) for i in self._all_positions(step, r)}
        kept: list[int] = []
        left: list[int] = []
        for position in near:
            place = self._place(position)
            (left if place in seen or self._passed_over(place, step) else kept).append(position)
            seen.add(place)
            if len(kept) == size:
                break
        return (kept + left)[:size]

    def _stretch(self, step: int) -> range:
        return range(step * self._batch_size, (step + 1) * self._batch_size)

    def _readable(self, position: int) -> Place:
        for place in map(self._place, range(position, position + self._batch_size)):
            if place not in self._broken:
                return place
        raise UserError(f"{self._broken[place]}; nor can the {self._batch_size - 1} questions before it be read")

    def questions(self, step: int, refill: int = 0) -> list[Question]:
        """This host's questions of a step or of one of its refills, see `taken`."""
        return self._maker.questions(self.taken(step, refill))

    def replaced(self, step: int) -> int:
        """How many of this host's questions of a step stand for others, whose images can't be read."""
        return sum(self._place(i) != place for i, place in zip(self._positions(step), self.taken(step), strict=True))

    def left_out(self, step: int) -> int:
        """How many questions of a step's stretch, over all hosts, `passed_over` leaves out."""
        return len(set(self._stretch(step)) - set(self._all_positions(step, 0)))

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
                with _living_workers():
                    for ahead in steps:
                        waiting.append(self._submit(ahead))
                        if len(waiting) == self._ahead:
                            break
                    made = self._made((step, 0), *waiting.popleft())
                yield made
        finally:
            for _, batch in waiting:
                batch.cancel()

    def refill(self, step: int, refill: int) -> Any:
        """This host's batch of further questions of a step, the `refill`-th, from 1; errors as of `batches`."""
        with _living_workers():
            return self._made((step, refill), *self._submit(step, refill))

    def _submit(self, step: int, refill: int = 0) -> tuple[list[Place], Future]:
        places = self.places(step, refill)
        return places, self._pool.submit(places)

    def _made(self, key: tuple[int, int], places: list[Place], batch: Future) -> Any:
        """The batch of (step, refill); from other places where some turn out broken."""
        while True:
            try:
                made = batch.result()
            except BrokenImages as error:
                self._note(error.args[0])
                places, batch = self._submit(*key)
                continue
            self._taken[key] = places  # in place: a refill may be made while another thread makes the next batch
            for known in list(self._taken):
                if known[0] < key[0] - KEPT_STEPS:
                    self._taken.pop(known, None)
            return made

    def _note(self, broken: dict[Place, str]) -> None:
        for place, said in broken.items():
            if self._strict:
                raise UserError(said)
            if place not in self._broken:
                say(f"warning: {said}; the next question takes its place")
        self._broken |= broken


@contextmanager
def _living_workers() -> Iterator[None]:
    """Says in one line that a worker died."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "a data worker died, killed or out of memory; --resume goes on from the last checkpoint, "
            "fewer --workers need less memory"
        ) from None
