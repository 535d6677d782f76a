"""SIGTERM, by which schedulers announce that a machine will be taken away: the run saves and ends with exit code 0."""

from __future__ import annotations

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from zoomearth_jax.terminal.progress import say


class StopSignal:
    """Notes SIGTERM instead of dying of it. Use as the outermost context manager of a run, so that a second one can't break
    what the first began:

    with StopSignal() as stop, Checkpoints(out) as checkpoints:
        for ...:
            if stop.requested():
                break
            ...
        if steps are left:
            checkpoints.save(done, state)
            stop.after(done)

    Leaving it after `after` ends the program with exit code 0. Ctrl-C is left as it is: it ends a run at once.
    """

    def __init__(self):
        """Catches nothing yet."""
        self._noted, self._after, self._before = threading.Event(), None, None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python's rule; elsewhere SIGTERM stays as it is
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._noted.set())
        return self

    def __exit__(self, kind, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if kind is None and self._after is not None:
            if jax.process_index() == 0:
                say(f"stopped by SIGTERM after step {self._after}; --resume goes on")
            raise SystemExit(0)

    def requested(self) -> bool:
        """Whether to stop; of several processes, whether any was told to. All must ask at the same places."""
        noted = self._noted.is_set()
        return bool(multihost_utils.process_allgather(np.array(noted)).any()) if jax.process_count() > 1 else noted

    def after(self, step: int) -> None:
        """Says where the run stops: what was asked for is done."""
        self._after = step
