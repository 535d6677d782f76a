"""Continuous batching: requests join the rows of one model when they come, write at the same time, and leave when they end.

One thread runs the devices. Between two visits of some tokens it takes new requests, lets rows go on that were given more to
read, and drops those that nobody waits for any more. Turning ids into text is the reader's work.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from zoomearth_jax.configs.generation import GeneratorConfig, ReplyConfig
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.asking import LoadedPolicy
from zoomearth_jax.rl.rollout.sampling import row_keys
from zoomearth_jax.serving.batches import Batches
from zoomearth_jax.serving.channel import Channel
from zoomearth_jax.serving.texts import Texts


class Busy(Exception):
    """No row is free and the queue is full.

    Attributes:
        retry_after: seconds after which there may be room.
    """

    def __init__(self, retry_after: int):
        super().__init__(f"all rows are busy and the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class Closed(Exception):
    """The generator takes no more requests: it is being closed."""


class Segment(NamedTuple):
    """What a row reads: ids with a placeholder for each visual token, and its pictures in order, uint8 [h, w, 3], sides in
    multiples of a visual token."""

    ids: Sequence[int]
    pictures: Sequence[np.ndarray] = ()


class Delta(NamedTuple):
    """New text of a reply, and the ids that have come with it: a character may take several, and an end token has no text."""

    text: str
    ids: tuple[int, ...]


class Finished(NamedTuple):
    """The end of a turn.

    Attributes:
        reason: `stop`: an end token or one of the request's texts; `length`: no more tokens were asked for, or there was no
            more room; `cancelled`; `error`.
        prompt_tokens, completion_tokens: those that the row has read and written so far, in all turns.
        message: of an error.
    """

    reason: str
    prompt_tokens: int
    completion_tokens: int
    message: str = ""


class Stats(NamedTuple):
    """What a generator is doing, and has done.

    Attributes:
        rows, busy: how many there are, and how many of them requests hold. waiting: requests in the queue.
        prompt_tokens, tokens: that were read and written. outcomes: requests that ended, by reason.
    """

    rows: int
    busy: int
    waiting: int
    prompt_tokens: int
    tokens: int
    outcomes: dict[str, int]


@dataclasses.dataclass(eq=False)
class Job:
    """One request as the generator sees it.

    Attributes:
        keys: data of its random keys, uint32 [turns, words]. hold: whether it keeps its row at a turn's end.
        segment: what it reads next. left: tokens that it may write in this turn. again: see `Stretch`.
        row: its row; none before it has one. used: slots that the row has used; first: before this turn.
        turn, step: how many turns it has begun, and tokens that it has written in this one.
    """

    channel: Channel[tuple[list[int], str, str]]
    reply: ReplyConfig
    keys: np.ndarray
    hold: bool
    segment: Segment | None
    left: int
    began: float
    again: bool = False
    row: int | None = None
    used: int = 0
    first: int = 0
    turn: int = -1
    step: int = 0
    over: bool = False

    @property
    def writes(self) -> bool:
        """Whether it is in the middle of a turn."""
        return self.row is not None and self.segment is None and self.left > 0


class Generation:
    """What becomes of a request; iterate over it, in a thread or an event loop, for one turn's events."""

    def __init__(self, generator: Generator, job: Job):
        self._generator, self._job = generator, job
        self._prompt_tokens = self._completion_tokens = 0
        self._begin(job.segment)

    def _begin(self, segment: Segment | None) -> None:
        self._texts, self._told = Texts(self._generator.rows.decode, self._job.reply.stop), 0
        self._prompt_tokens += len(segment.ids) if segment else 0

    def __iter__(self) -> Iterator[Delta | Finished]:
        while True:
            for event in self._events(self._job.channel.take()):
                yield event
                if isinstance(event, Finished):
                    return

    async def __aiter__(self) -> AsyncIterator[Delta | Finished]:
        while True:
            for event in self._events(await self._job.channel.taken()):
                yield event
                if isinstance(event, Finished):
                    return

    def go_on(self, segment: Segment, max_tokens: int, again: bool = False) -> None:
        """Starts the next turn of a row that was held; iterate for its events.

        Args:
            segment: what the row reads first.
            max_tokens: as of `ReplyConfig`.
            again: whether it reads that in place of what it wrote last.
        """
        self._begin(segment)
        self._generator._go_on(self._job, segment, max_tokens, again)

    def cancel(self) -> None:
        """Gives the row back, whatever it is doing; does nothing where the request is over."""
        self._generator._end(self._job, "cancelled")

    @property
    def text(self) -> str:
        """This turn's text."""
        return self._texts.text

    @property
    def ended(self) -> bool:
        """Whether the text has reached one of those that end the reply."""
        return self._texts.ended

    def _events(self, news: list[tuple[list[int], str, str]]) -> Iterator[Delta | Finished]:
        ids = [i for some, _, _ in news for i in some]
        _, reason, message = news[-1]
        before = len(self._texts.ids)
        text = self._texts.add(ids, last=bool(reason))
        self._completion_tokens += len(self._texts.ids) - before
        if self._texts.ended:
            self._generator._end(self._job, "stop")
            reason = "stop"
        if text or (reason and self._told < len(self._texts.ids)):
            yield Delta(text, tuple(self._texts.ids[self._told :]))
            self._told = len(self._texts.ids)
        if reason:
            yield Finished(reason, self._prompt_tokens, self._completion_tokens, message)


class Generator:
    """The rows of one model. Requests may come from any thread; close it at the end."""

    def __init__(self, policy: LoadedPolicy, config: GeneratorConfig = GeneratorConfig(), warm: bool = False):
        """Makes the cache, and starts the thread that runs the devices.

        Args:
            warm: compile all programs now, not when they are first needed.

        Raises:
            UserError: slots that hold no episode, or a cache that doesn't fit the device.
        """
        self.rows: RowBuilder = policy.rows
        self._batches = Batches(policy, config)
        self.config = self._batches.config
        self._changed = threading.Condition()
        self._free = list(range(config.rows))[::-1]
        self._waiting: deque[Job] = deque()
        self._jobs: set[Job] = set()  # that hold rows
        self._closing = False
        self._outcomes: Counter[str] = Counter()
        self._read = self._written = 0
        self._seconds = 1.0  # that a request holds its row, a running mean
        if warm:
            self._batches.warm_up()
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._thread.start()

    def check_room(self, choices: int = 1) -> None:
        """Raises Busy or Closed where `submit` would, with so many choices."""
        with self._changed:
            if self._closing:
                raise Closed("the server is shutting down")
            if len(self._waiting) + choices > len(self._free) + self.config.queue:
                raise Busy(self._retry_after())

    def submit(
        self, segment: Segment, reply: ReplyConfig, *, choices: Sequence[int] = (0,), hold: bool = False
    ) -> list[Generation]:
        """Takes a request, for all of its choices or none.

        Args:
            segment: the prompt.
            choices: the numbers of the replies to give: the same request with another number draws in another way.
            hold: whether rows stay after a turn, for `Generation.go_on`; the caller then sees to it that each is cancelled.

        Raises:
            UserError: a prompt that doesn't fit the slots, or more choices than there can ever be room for.
            Busy: no room now.
            Closed: the generator is being closed.
        """
        left, most = self._room(len(segment.ids), reply.max_tokens), self.config.rows + self.config.queue
        if len(choices) > most:
            raise UserError(f"{len(choices)} choices; there is room for {most}")
        if len(segment.pictures) > self.config.pictures:
            raise UserError(f"{len(segment.pictures)} images; at most {self.config.pictures} fit one request")
        sampling = reply.sampling.of(self.rows.episode)
        reply = dataclasses.replace(reply, sampling=sampling)
        jobs = [
            Job(Channel(), reply, self._keys(reply.seed, choice), hold, segment, left, time.monotonic())
            for choice in choices
        ]
        generations = [Generation(self, job) for job in jobs]
        with self._changed:
            self.check_room(len(choices))
            self._waiting.extend(jobs)
            self._changed.notify()
        return generations

    def _room(self, prompt: int, max_tokens: int | None) -> int:
        """Tokens that a reply may have."""
        slots = self.config.slots
        room = slots - prompt
        if room < (max_tokens or 1):
            more = f"and max_tokens {max_tokens} " if max_tokens else ""
            raise UserError(f"the prompt's {prompt:,} tokens {more}don't fit the {slots:,} slots of a row")
        return max_tokens or room

    def _keys(self, seed: int, choice: int) -> np.ndarray:
        """Data of random keys [turns, words]: those with which `ask` plays the same seed."""
        keys = row_keys(jax.random.key(seed % 2**32), np.array([choice], np.uint32), self.rows.layout.num_turns)
        return np.asarray(jax.random.key_data(keys))[:, 0]

    def _retry_after(self) -> int:
        return max(1, math.ceil(self._seconds * (len(self._waiting) + 1) / self.config.rows))

    def _go_on(self, job: Job, segment: Segment, max_tokens: int, again: bool) -> None:
        used = job.first if again else job.used
        self._room(used + len(segment.ids), max_tokens)
        with self._changed:
            if not job.over:
                job.used, job.segment, job.left, job.again = used, segment, max_tokens, again
                self._changed.notify()

    def _end(self, job: Job, reason: str, message: str = "") -> None:
        """Ends a request and frees its row."""
        with self._changed:
            if job.over:
                return
            job.over = True
            if job.row is None:
                self._waiting.remove(job)
            else:
                self._free.append(job.row)
                self._jobs.remove(job)
                self._seconds += 0.1 * (time.monotonic() - job.began - self._seconds)
            job.segment = None
            self._outcomes[reason] += 1
            job.channel.put(([], reason, message))
            self._changed.notify()

    @property
    def cache_bytes(self) -> int:
        """Bytes that the rows' cache takes on the devices."""
        return self._batches.num_bytes

    @property
    def stats(self) -> Stats:
        """What it is doing, and has done."""
        with self._changed:
            counts = len(self._jobs), len(self._waiting), self._read, self._written
            return Stats(self.config.rows, *counts, dict(self._outcomes))

    def close(self, drain: bool = True, timeout: float = 30.0) -> None:
        """Takes no more requests, and ends the thread.

        Args:
            drain: whether requests that were taken are played to their end.
            timeout: seconds for that; those that take longer are cancelled.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if drain:
            self._thread.join(timeout)
        with self._changed:
            left = [*self._jobs, *self._waiting]
        for job in left:
            self._end(job, "cancelled")
        self._thread.join()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *error) -> None:
        self.close(drain=False)

    def _run(self) -> None:
        while self._await_work():
            try:
                self._go_round()
            except Exception as error:  # of the devices, such as no memory: what they held is lost
                with self._changed:
                    lost = list(self._jobs)
                for job in lost:
                    self._end(job, "error", f"{type(error).__name__}: {error}")
                self._batches.reset()

    def _await_work(self) -> bool:
        """Waits for something to do; False once there will be nothing more."""

        def work() -> bool:
            return bool(self._waiting and self._free) or any(job.writes or job.segment for job in self._jobs)

        with self._changed:
            self._changed.wait_for(lambda: work() or (self._closing and not self._jobs and not self._waiting))
            return work()

    def _go_round(self) -> None:
        """Lets rows read what they were given, and all write a visit's tokens."""
        with self._changed:
            while self._waiting and self._free:
                job = self._waiting.popleft()
                job.row, job.began = self._free.pop(), time.monotonic()
                self._jobs.add(job)
            reading = [(job, job.segment) for job in self._jobs if job.segment is not None]
        self._batches.read(reading)
        with self._changed:
            for job, segment in reading:
                self._begin_turn(job, segment)
            writing = sorted((job for job in self._jobs if job.writes), key=lambda job: job.row or 0)
        if writing:
            written = self._batches.write(writing)
            for job, ids, stopped in zip(writing, *written, strict=True):
                self._take(job, ids, stopped)

    def _begin_turn(self, job: Job, segment: Segment) -> None:
        if not job.over:
            job.used += len(segment.ids)
            job.segment, job.first, job.step, job.turn = None, job.used, 0, job.turn + 1
            self._read += len(segment.ids)

    def _take(self, job: Job, ids: list[int], stopped: bool) -> None:
        """Takes what a row wrote."""
        with self._changed:
            if job.over:
                return
            job.used += len(ids) - stopped
            job.step += len(ids)
            job.left = 0 if stopped else job.left - len(ids)
            self._written += len(ids)
            ends = "" if job.left else "stop" if stopped else "length"
            job.channel.put((ids, ends if job.hold else "", ""))
            if ends and not job.hold:
                self._end(job, ends)
