"""The server's routes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from zoomearth_jax.serving import completions, file_routes, image_routes
from zoomearth_jax.serving.errors import HANDLERS, APIError
from zoomearth_jax.serving.gate import Gate
from zoomearth_jax.serving.openapi import openapi
from zoomearth_jax.serving.service import Service

PAGE = Path(__file__).parent / "page"


async def get_health(request: Request) -> JSONResponse:
    """Says whether the server takes requests: 503 while it is about to stop."""
    draining = request.app.state.service.draining
    return JSONResponse({"status": "draining" if draining else "ok"}, 503 if draining else 200)


async def get_metrics(request: Request) -> Response:
    """Gives Prometheus its figures."""
    return Response(request.app.state.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def get_openapi(request: Request) -> JSONResponse:
    """Gives the schema of all this."""
    service: Service = request.app.state.service
    return JSONResponse(openapi(service.settings.name, bool(service.api_key)))


async def get_page(_: Request) -> Response:
    """Gives the page."""
    if not (PAGE / "index.html").is_file():
        raise APIError(404, "this server has no page")
    return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})


def make_app(service: Service) -> Starlette:
    """The application of a service; its end closes the service."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(service.sweep_forever())
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.to_thread(service.close)

    routes = [
        *completions.ROUTES,
        *file_routes.ROUTES,
        *image_routes.ROUTES,
        Route("/health", get_health, methods=["GET"]),
        Route("/openapi.json", get_openapi, methods=["GET"]),
        Route("/metrics", get_metrics, methods=["GET"]),
        Route("/", get_page, methods=["GET"]),
        Mount("/page", StaticFiles(directory=PAGE, check_dir=False), name="page"),
    ]
    gate = [Middleware(Gate, service=service)]
    app = Starlette(routes=routes, middleware=gate, exception_handlers=HANDLERS, lifespan=lifespan)
    app.state.service = service
    return app
