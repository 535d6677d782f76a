"""What every request passes: who may come in, whether the server still takes requests, and how often and how long they ran."""

from __future__ import annotations

import hmac
import time
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zoomearth_jax.serving.errors import APIError
from zoomearth_jax.serving.metrics import Metrics

_OPEN = ("/health", "/openapi.json", "/", "/favicon.ico")  # without a key
_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class Watched(Protocol):
    """What the gate knows of the server: `api_key` and `hosts` say who may come in, empty for anybody; `active` counts requests."""

    api_key: str
    hosts: tuple[str, ...]
    draining: bool
    active: int
    metrics: Metrics


class Gate:
    """Middleware in front of all routes.

    A browser's page of another site can send requests to a server on localhost; so the Host must be one of those known, and an
    Origin, which browsers add, must be the server's own.
    """

    def __init__(self, app: ASGIApp, service: Watched):
        """Takes what it watches for."""
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        self._service.active += 1
        try:
            await self._pass(scope, receive, sending)
        finally:
            self._service.active -= 1
            route = getattr(scope.get("endpoint"), "__name__", "none")
            self._service.metrics.requests.labels(route, str(status)).inc()
            self._service.metrics.seconds.labels(route).observe(time.perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope["path"], Headers(scope=scope))
        except APIError as error:
            await error.response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        """Refuses what may not come in.

        Raises:
            APIError: 403, 401 or 503.
        """
        service, host = self._service, headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if service.hosts and name.lower() not in service.hosts:
            raise APIError(403, f"this server is not called {name[:80]!r}; --allowed-hosts names further hosts")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise APIError(403, "requests from another site's page are refused")
        if service.api_key and path not in _OPEN and not path.startswith("/page/"):
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {service.api_key}".encode()):
                raise APIError(
                    401,
                    "no valid API key; send the header Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if service.draining and path not in ("/health", "/metrics"):
            raise APIError(503, "the server is about to stop", code="draining", headers={"Retry-After": "30"})
