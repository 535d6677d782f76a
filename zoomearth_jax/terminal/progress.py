"""What a verb says while it works, on standard error: a bar on a terminal, elsewhere a line every so often."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized

from tqdm import tqdm

SECONDS = 15.0  # between lines off a terminal


class Progress:
    """Counts what is done. Use as a context manager."""

    def __init__(self, label: str, total: int | None = None, *, start: int = 0, unit: str = "", quiet: bool = False):
        """Begins.

        Args:
            label: text before the bar and in the lines.
            total: how much is to be done, where it is known.
            start: how much was done before.
            unit: name of what is counted.
            quiet: say nothing, as of several processes all but one do.
        """
        self._label, self._unit, self._total = label, unit, total
        self._start = self.done = start
        self._notes = ""
        self._began = self._said = time.monotonic()
        self._lines = not quiet and not terminal()
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=label,
            unit=unit or "it",
            unit_scale=bool(unit),
            leave=False,
            disable=quiet or self._lines,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def update(self, count: int = 1, notes: Mapping[str, str] | str = "") -> None:
        """Adds what is done now; `notes` are shown beside it from here on."""
        self.done += count
        if notes:
            self._notes = notes if isinstance(notes, str) else ", ".join(f"{k} {v}" for k, v in notes.items())
            self._bar.set_postfix_str(self._notes, refresh=False)
        self._bar.update(count)
        now = time.monotonic()
        if self._lines and now - self._said >= SECONDS:
            self._said = now
            say(self._line(now - self._began))

    def _line(self, seconds: float) -> str:
        rate = (self.done - self._start) / seconds
        of = "" if self._total is None else f" of {_short(self._total)}"
        parts = [f"{self._label}: {_short(self.done)}{of}{self._unit and ' ' + self._unit}", f"{_short(rate)} a second"]
        if self._total is not None and rate > 0:
            parts.append(f"{_duration((self._total - self.done) / rate)} left")
        return ", ".join([*parts, self._notes] if self._notes else parts)


def tracked(items: Iterable, label: str, total: int | None = None) -> Iterator:
    """The items, counted as they are done.

    Args:
        total: how many there are, where they have no length.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    with Progress(label, total) as progress:
        for item in items:
            yield item
            progress.update()


def say(line: str) -> None:
    """One line on standard error, above a bar."""
    tqdm.write(f"zoomearth: {line}", file=sys.stderr)


def terminal() -> bool:
    """Whether somebody watches standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def _short(count: float) -> str:
    """A number in few characters: 12, 3.4, 2,048, 3.1M."""
    if count >= 1e6:
        return next(
            f"{count / size:.3g}{letter}" for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if count >= size
        )
    return f"{count:,.0f}" if count >= 100 or count == int(count) else f"{count:.2g}"


def _duration(seconds: float) -> str:
    """Seconds as 40 s, 12 min or 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
