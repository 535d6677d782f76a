"""Runs the application until a signal: then no new requests are taken, those that run are brought to their end, and it stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from zoomearth_jax.errors import UserError
from zoomearth_jax.serving.service import Service
from zoomearth_jax.terminal.progress import say

_CONNECTIONS = 2_048  # at the same time; further ones get 503
_LAST_SECONDS = 2.0  # in which requests that were cut off may say so
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DrainingServer(uvicorn.Server):
    """A server that ends in two steps. After the first signal it answers 503, on `/health` too, so that balancers send nobody
    more; it stops as soon as no request is left, or after some seconds. A second signal cuts off those that are left."""

    def __init__(self, app: Starlette, service: Service, drain_seconds: float):
        """Takes how long requests may go on after the first signal."""
        config = uvicorn.Config(
            app,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            backlog=_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(_LAST_SECONDS),
        )
        super().__init__(config)
        self._service, self._seconds, self._until = service, drain_seconds, float("inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says where, once connections are taken."""
        await super().startup(sockets)
        if sockets:
            host, port = sockets[0].getsockname()[:2]
            place = f"[{host}]" if ":" in host else host
            say(f"{self._service.settings.name} is served at http://{place}:{port}/ (Ctrl-C ends it)")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes the signals over while it runs; they don't end the process after it, other than uvicorn's own way."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signal.set_wakeup_fd(-1)  # a Ctrl-C would otherwise end the command within two seconds
        before = {one: signal.signal(one, self.handle_exit) for one in _SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        seconds = 0.0 if self._service.draining else self._seconds
        self._service.draining, self._until = True, time.monotonic() + seconds

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop."""
        if self._service.draining and not self.should_exit:
            if self._service.active == 0:
                self.should_exit = True
            elif time.monotonic() > self._until:
                await asyncio.to_thread(self._service.generator.close, drain=False)  # what is cut off is told so
                self.should_exit = True
        return await super().on_tick(counter)


def bound(host: str, port: int) -> socket.socket:
    """A socket that nobody else has.

    Raises:
        UserError: no such address, or it is taken.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, proto)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except BaseException:
            taken.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: can't be served at ({said}); choose others") from None
    return taken


def run(app: Starlette, service: Service, listener: socket.socket, drain_seconds: float) -> None:
    """Serves until a signal, from the main thread.

    What is there by now, the model's and the libraries' objects, stays to the end; looking through them for garbage again and
    again would take most of the loop's time.
    """
    gc.collect()
    gc.freeze()
    DrainingServer(app, service, drain_seconds).run(sockets=[listener])
    say("the server has stopped")
