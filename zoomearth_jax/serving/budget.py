"""Bytes that all requests share, of memory and of the disk: what would go over the limit is refused before it is taken."""

from __future__ import annotations

import threading

from zoomearth_jax.serving.errors import busy


class Budget:
    """A number of bytes. Threads may share it."""

    def __init__(self, limit: int, refusal: str):
        """Takes the limit, and what is said where it is reached."""
        self.limit, self._refusal = limit, refusal
        self.taken, self._lock = 0, threading.Lock()

    def share(self, size: int = 0) -> Share:
        """A part of it, which is to be released; see `Share.add`."""
        share = Share(self)
        share.add(size)
        return share

    def _take(self, size: int) -> None:
        with self._lock:
            if self.taken + size > self.limit:
                raise busy(self._refusal, 5, "server_full")
            self.taken += size

    def _give(self, size: int) -> None:
        with self._lock:
            self.taken -= size


class Share:
    """What one request or one file has of a budget. Use as a context manager, or release it."""

    def __init__(self, budget: Budget):
        self._budget, self.size = budget, 0

    def add(self, size: int) -> None:
        """Takes more.

        Raises:
            APIError: 429, where the budget hasn't as much.
        """
        self._budget._take(size)
        self.size += size

    def release(self) -> None:
        """Gives everything back; a second time does nothing."""
        self._budget._give(self.size)
        self.size = 0

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_) -> None:
        self.release()
