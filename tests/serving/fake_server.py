"""A server with the API that the page uses and no model: what it answers is set by the tests."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from PIL import Image, ImageDraw
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import zoomearth_jax

PAGE = Path(zoomearth_jax.__file__).parent / "serving" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgaGAAAAEEAIEW7ZkFAAAAAElFTkSuQmCC"
)
WIDTH, HEIGHT, TILE, LEVELS = 3000, 2000, 256, 5
BOX, WINDOW = [1800, 600, 2100, 900], [1750, 550, 2150, 950]


def turns(*texts: str, answer: str | None = "blue", box=BOX, window=WINDOW) -> list[dict]:
    """The deltas of an episode of two turns with one look."""
    first, second = texts or ("<think>over there</think>", "<think>it is blue</think>")
    return [
        {"trace": {"event": "turn", "turn": 1}},
        *({"content": word} for word in re.findall(r"\S+\s*|\s+", first)),
        {"trace": {"event": "look", "turn": 1, "box": box, "window": window}},
        {"trace": {"event": "picture", "turn": 1, "window": window, "picture": PIXEL}},
        {"trace": {"event": "turn", "turn": 2}},
        {"content": second},
        {"trace": {"event": "answer", "answer": answer, "box": box, "truncated": False}},
    ]


@dataclasses.dataclass
class Fake:
    """What the server answers, and what it was asked.

    Attributes:
        deltas: of the next answers.
        pause: seconds between them.
        held: how many of them may be sent by now; None for all.
        key: what clients must send; "" where none is needed.
        refusals: answers (status, headers, message) that the next questions get instead, first to last.
        crs: of all images.
        examples, tools: what the page offers.
        tiling: seconds until an uploaded image is ready.
        part_seconds: how long a part of an upload takes.
        asked: the bodies of questions; parts: the sizes of uploaded parts; cancelled: whether the last upload was.
        boxes: what was sent for GeoJSON.
        removed: files that were deleted.
        left: whether the client left before the end of an answer.
    """

    deltas: list[dict] = dataclasses.field(default_factory=turns)
    pause: float = 0.0
    held: int | None = None
    key: str = ""
    refusals: list[tuple[int, dict, str]] = dataclasses.field(default_factory=list)
    crs: str | None = None
    examples: list[dict] = dataclasses.field(default_factory=list)
    tools: list[dict] = dataclasses.field(default_factory=list)
    tiling: float = 0.0
    part_seconds: float = 0.0
    asked: list[dict] = dataclasses.field(default_factory=list)
    parts: list[int] = dataclasses.field(default_factory=list)
    cancelled: bool = False
    boxes: list[dict] = dataclasses.field(default_factory=list)
    removed: list[str] = dataclasses.field(default_factory=list)
    left: bool = False
    ready_at: float = 0.0


def scene(box: tuple[float, float, float, float], size: tuple[int, int]) -> bytes:
    """A part of the one image, a PNG: green, with a blue square at BOX."""
    left, top, right, bottom = box
    across, down = size[0] / (right - left), size[1] / (bottom - top)
    picture = Image.new("RGB", size, (70, 110, 70))
    corners = [(BOX[i] - (left, top)[i % 2]) * (across, down)[i % 2] for i in range(4)]
    ImageDraw.Draw(picture).rectangle(corners, (40, 60, 200))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def refused(status: int, message: str, headers: dict | None = None) -> JSONResponse:
    """OpenAI's form of an error."""
    return JSONResponse({"error": {"message": message}}, status, headers)


def app(fake: Fake) -> Starlette:
    """The routes."""

    async def page(request: Request) -> Response:
        path = PAGE / request.path_params.get("path", "index.html")
        return FileResponse(path, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-store"})

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "fake-model", "object": "model"}]})

    async def start(_: Request) -> Response:
        fake.parts, fake.cancelled = [], False
        return JSONResponse({"id": "upload-1"})

    async def part(request: Request) -> Response:
        async with request.form() as form:
            fake.parts.append(len(await form["data"].read()))
        await asyncio.sleep(fake.part_seconds)
        return JSONResponse({"id": f"part-{len(fake.parts)}"})

    async def complete(request: Request) -> Response:
        assert (await request.json())["part_ids"] == [f"part-{i + 1}" for i in range(len(fake.parts))]
        fake.ready_at = time.monotonic() + fake.tiling
        return JSONResponse({"file": {"id": "file-1"}})

    async def cancel(_: Request) -> Response:
        fake.cancelled = True
        return JSONResponse({})

    async def remove(request: Request) -> Response:
        fake.removed.append(request.path_params["id"])
        return JSONResponse({"deleted": True})

    async def image(request: Request) -> Response:
        file_id = request.path_params["id"]
        if file_id == "file-gone":
            return refused(404, "no such file")
        size = {"id": file_id, "width": WIDTH, "height": HEIGHT, "tile_px": TILE, "levels": LEVELS, "crs": fake.crs}
        return JSONResponse({**size, "ready": time.monotonic() >= fake.ready_at})

    async def tile(request: Request) -> Response:
        level, column, row = (request.path_params[name] for name in ("level", "column", "row"))
        step = TILE * 2**level
        left, top = column * step, row * step
        right, bottom = min(left + step, WIDTH), min(top + step, HEIGHT)
        size = (-(-(right - left) >> level), -(-(bottom - top) >> level))
        return Response(scene((left, top, right, bottom), size), media_type="image/png")

    async def window(request: Request) -> Response:
        box = tuple(float(value) for value in request.query_params["box"].split(","))
        size = (int(request.query_params["width"]), int(request.query_params["height"]))
        return Response(scene(box, size), media_type="image/png")

    async def geojson(request: Request) -> Response:
        fake.boxes = (await request.json())["boxes"]
        return JSONResponse({"type": "FeatureCollection", "features": []})

    async def ask(request: Request) -> Response:
        fake.asked.append(await request.json())
        if fake.refusals:
            status, headers, message = fake.refusals.pop(0)
            return refused(status, message, headers)
        return StreamingResponse(events(fake), media_type="text/event-stream")

    async def events(fake: Fake):
        sent = 0
        try:
            for delta in fake.deltas:
                await asyncio.sleep(fake.pause)
                while fake.held is not None and sent >= fake.held:
                    await asyncio.sleep(0.02)
                chunk = delta if "error" in delta else {"choices": [{"index": 0, "delta": delta}]}
                yield f"data: {json.dumps(chunk)}\r\n\r\n"
                sent += 1
            yield "data: [DONE]\n\n"
        finally:
            fake.left = sent < len(fake.deltas)

    def keyed(handler):
        async def checked(request: Request) -> Response:
            if fake.key and request.headers.get("Authorization") != f"Bearer {fake.key}":
                return refused(401, "no key, or a wrong one")
            return await handler(request)

        return checked

    async def examples(_: Request) -> Response:
        return JSONResponse(fake.examples)

    async def tools(_: Request) -> Response:
        return JSONResponse(fake.tools)

    api = [
        ("/v1/models", models, "GET"),
        ("/v1/examples", examples, "GET"),
        ("/v1/tools", tools, "GET"),
        ("/v1/uploads", start, "POST"),
        ("/v1/uploads/{id}/parts", part, "POST"),
        ("/v1/uploads/{id}/complete", complete, "POST"),
        ("/v1/uploads/{id}/cancel", cancel, "POST"),
        ("/v1/files/{id}", remove, "DELETE"),
        ("/v1/images/{id}", image, "GET"),
        ("/v1/images/{id}/tiles/{level:int}/{column:int}_{row:int}", tile, "GET"),
        ("/v1/images/{id}/window", window, "GET"),
        ("/v1/images/{id}/geojson", geojson, "POST"),
        ("/v1/chat/completions", ask, "POST"),
    ]
    routes = [Route(path, keyed(handler), methods=[method]) for path, handler, method in api]
    return Starlette(routes=[Route("/", page), Route("/page/{path:path}", page), *routes])


@contextlib.contextmanager
def served(application) -> Iterator[str]:
    """Runs an ASGI application in a thread; gives its address."""
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
