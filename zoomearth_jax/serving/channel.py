"""What a thread puts in, another thread or an event loop takes out."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """A queue with one reader, which either waits in a thread (`take`) or in an event loop (`taken`)."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Event | None = None

    def put(self, item: T) -> None:
        """Adds an item; from any thread, never blocks."""
        with self._changed:
            self._items.append(item)
            self._changed.notify()
            if self._loop is not None and self._ready is not None:
                with contextlib.suppress(RuntimeError):  # the reader's loop has gone, and the reader with it
                    self._loop.call_soon_threadsafe(self._ready.set)

    def _all(self) -> list[T]:
        items = list(self._items)
        self._items.clear()
        return items

    def take(self) -> list[T]:
        """All items; waits for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            return self._all()

    async def taken(self) -> list[T]:
        """All items; waits for one without blocking the loop."""
        while True:
            with self._changed:
                if self._items:
                    return self._all()
                self._loop, self._ready = asyncio.get_running_loop(), asyncio.Event()
                ready = self._ready
            await ready.wait()
