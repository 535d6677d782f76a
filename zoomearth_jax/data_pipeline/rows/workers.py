"""Making batches ahead, in threads of this process or in spawned ones.

Workers never import jax: they would start a backend of their own beside the one that trains. So nothing here imports grain
either, which imports jax wherever it is installed; grain's own workers, which start inside grain, therefore can't be used.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, NamedTuple

import numpy as np

from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.questions.mixture import Source
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError


class Place(NamedTuple):
    """A question: its number in the source of that number."""

    source: int
    index: int  # type: ignore[assignment]  # a tuple has a method of that name


class BrokenImages(Exception):
    """Images of a batch that can't be read: place -> what is said of it, as `args[0]`."""


class _Watched:
    """An image whose own failures can be told from others of its question."""

    def __init__(self, image: ImageSource):
        self._image, self.frame = image, image.frame

    def window(self, *args, **more) -> np.ndarray:
        try:
            return self._image.window(*args, **more)
        except (UserError, OSError) as error:
            raise _Unreadable(str(error)) from None


class _Unreadable(UserError):
    """An image can't be read."""


@dataclasses.dataclass(frozen=True)
class BatchMaker:
    """Makes a batch of the questions at some places; pickles."""

    sources: Sequence[Source]
    make: Callable[[list[Question]], Any]

    def questions(self, places: Sequence[Place]) -> list[Question]:
        """The questions themselves."""
        return [self.sources[source].questions[index] for source, index in places]

    def __call__(self, places: Sequence[Place]) -> Any:
        """What `make` gives for them.

        Raises:
            BrokenImages: some of their images can't be read.
            UserError: a question that `make` refuses for another reason, naming it.
        """
        try:
            return self.make(self.questions(places))
        except (UserError, OSError):
            broken = {place: said for place in dict.fromkeys(places) if (said := self._broken(place))}
            if broken:
                raise BrokenImages(broken) from None
            raise

    def _broken(self, place: Place) -> str | None:
        """The message about what is wrong with a question's image."""
        question = self.questions([place])[0]
        name = f"{self.sources[place.source].name} question {place.index + 1}"
        try:
            self.make([dataclasses.replace(question, image=_Watched(question.image))])
        except _Unreadable as error:
            return f"{name}: {error}"
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        return None


class KeptRows:
    """Makes batches of rows, and keeps rows up to `budget` bytes: those of a small set are made once, not every epoch."""

    def __init__(self, maker: BatchMaker, budget: int):
        """`maker` makes (nested) NamedTuples of arrays with as many entries for each question, one after the other."""
        self._maker, self._budget = maker, budget
        self._kept: dict[Place, Any] = {}

    def __call__(self, places: Sequence[Place]) -> Any:
        """The same batch as the maker gives."""
        missing = [place for place in dict.fromkeys(places) if place not in self._kept]
        made = self._maker(missing) if missing else ()
        if len(missing) == len(places) and self._budget <= 0:
            return made
        rows = {place: _map(lambda x, i=i: _part(x, i, len(missing)), made) for i, place in enumerate(missing)}
        batch = _map(lambda *x: np.concatenate(x), *(rows.get(p) or self._kept[p] for p in places))
        if self._budget > 0:
            self._kept |= rows
            self._budget -= sum(x.nbytes for x in _leaves(made))
        return batch


def _part(x: np.ndarray, i: int, count: int) -> np.ndarray:
    """Part i of so many equal ones along the first axis."""
    size = len(x) // count
    return x[i * size : (i + 1) * size]


def _map(function: Callable, *trees: Any) -> Any:
    """Applies a function to each array of (nested) tuples, or to the arrays in the same place of several."""
    first = trees[0]
    if not isinstance(first, tuple):
        return function(*trees)
    parts = [_map(function, *part) for part in zip(*trees, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def _leaves(tree: Any) -> list:
    return [leaf for part in tree for leaf in _leaves(part)] if isinstance(tree, tuple) else [tree]


_NOT_FOR_WORKERS = {signal.SIGTERM, signal.SIGINT}


class _Worker(SpawnProcess):
    def terminate(self) -> None:
        """The pool clears up with this after a worker that died; SIGTERM is blocked."""
        self.kill()


class _Spawn(SpawnContext):
    Process = _Worker


class Pool:
    """Makes batches in `workers` spawned processes, or with 0 of them in threads. Use as a context manager."""

    def __init__(self, maker: Callable[[Sequence[Place]], Any], workers: int):
        """Processes start with the first batch; each holds its own copy of the maker."""
        self._executor: Executor
        self._task: Callable[[Sequence[Place]], Any]
        if workers:
            self._executor = ProcessPoolExecutor(workers, _Spawn(), initializer=_start, initargs=(maker,))
            self._task = _work
        else:
            self._executor = ThreadPoolExecutor(2, thread_name_prefix="batch-maker")
            self._task = maker

    def submit(self, places: Sequence[Place]) -> Future:
        """The batch at these places, to come. A worker that dies ends it with BrokenProcessPool, at once."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_WORKERS)  # which workers that start now inherit
        try:
            return self._executor.submit(self._task, places)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._executor.shutdown(cancel_futures=True)


_MAKER: Callable[[Sequence[Place]], Any]  # of a worker process: sent once, not with every batch


def _start(maker: Callable) -> None:
    """The start of a worker. If the main process ends, however it does, the worker ends too.

    Ctrl-C, and a SIGTERM that a scheduler sends to all processes, are only for the main process, and blocked here from the
    start: the step in hand still needs the worker.
    """
    global _MAKER
    _MAKER = maker
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # a worker is a child
    wait([parent.sentinel])
    os._exit(1)


def _work(places: Sequence[Place]) -> Any:
    return _MAKER(places)
