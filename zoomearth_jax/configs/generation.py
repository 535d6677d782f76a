"""How a server's model writes: the rows that write at the same time, and what one request asks for."""

from __future__ import annotations

import dataclasses
import itertools

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.errors import UserError

MAX_STOPS = 16  # texts that end a reply


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The rows of a server's model. Each request takes one, or as many as it wants choices, and leaves it when it ends.

    Attributes:
        rows: requests that are written at the same time; each has a part of the cache.
        queue: requests that wait for a row; more are told to come again later.
        slots: tokens that a row holds: those of the prompt, its pictures and the reply. 0 for what an episode takes, at least 512.
        visit: tokens that a row writes between two looks of the server, which sends them, and then lets others join.
        steps: numbers of rows that the programs are compiled for, beside `rows` itself. With the number of rows the last
            bits of floats change, and thereby now and then a token; `steps` 0 has one size only, so that a reply doesn't even
            depend on that.
        picture_px: longest side of a chat's pictures as the model sees them; 0 for what the model's preprocessor allows, up to
            1,008. (Episodes have sizes of their own.)
        pictures: most pictures of one chat.
    """

    rows: int = 64
    queue: int = 256
    slots: int = 0
    visit: int = 8
    steps: tuple[int, ...] = (1, 8, 32)
    picture_px: int = 0
    pictures: int = 8

    def __post_init__(self):
        object.__setattr__(self, "steps", tuple(self.steps))
        for name in ("rows", "visit", "pictures"):
            if getattr(self, name) < 1:
                raise UserError(f"generator config: {name} must be positive, not {getattr(self, name)}")
        for name in ("queue", "slots", "picture_px"):
            if getattr(self, name) < 0:
                raise UserError(f"generator config: {name} must not be negative, not {getattr(self, name)}")
        if any(step < 0 for step in self.steps):
            raise UserError(f"generator config: steps must be numbers of rows, not {list(self.steps)}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of rows that programs are compiled for, rising; the last one is `rows`."""
        return *sorted({step for step in self.steps if 0 < step < self.rows}), self.rows

    def lengths(self, first: int) -> tuple[int, ...]:
        """Lengths that programs are compiled for: `first`, four times as much, and so on, up to all slots."""
        rising = itertools.takewhile(lambda n: n < self.slots, (first * 4**i for i in itertools.count()))
        return *rising, self.slots


@dataclasses.dataclass(frozen=True)
class ReplyConfig:
    """What one request asks for.

    Attributes:
        sampling: how tokens are drawn; without a temperature as the model's episode says.
        seed: of the draws, any whole number: the same one gives the same reply, whatever else is being written.
        max_tokens: most tokens of the reply, its stop token included; None for as many as the row has room for. In an episode the
            turns' own limits hold beside it.
        stop: texts that end the reply; they are no part of it.
    """

    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "stop", tuple(self.stop))
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise UserError(f"stop: give up to {MAX_STOPS} texts that aren't empty")
