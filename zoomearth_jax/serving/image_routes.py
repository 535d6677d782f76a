"""What the page shows of an uploaded image: its size, tiles, windows, and boxes on the map; the tools and the examples."""

from __future__ import annotations

import io
import math

import anyio
import numpy as np
from PIL import Image
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, clamped
from zoomearth_jax.data_pipeline.images.georeference import crs_name, georeference_of
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.reports.geojson import Placed, feature
from zoomearth_jax.serving.errors import APIError
from zoomearth_jax.serving.openai_schema import Number
from zoomearth_jax.serving.request import read_json
from zoomearth_jax.serving.schema import Strict, checked
from zoomearth_jax.serving.service import Service
from zoomearth_jax.serving.uploads import StoredFile

TILE_PX = 256
_MOST_SIDE = 4_096  # px of a window's picture
_JSON_BYTES = 4_000_000
_READERS = anyio.CapacityLimiter(4)  # threads that read and encode pictures for the page
_KEPT = {"Cache-Control": "private, max-age=3600, immutable"}  # a handle never gets other pixels


def levels(frame: Frame) -> int:
    """Number of levels: 0 is the full resolution, each next one has half of it, the last one is a single tile."""
    return max(-(-max(frame.width, frame.height) // TILE_PX) - 1, 0).bit_length() + 1


def tile(source: ImageSource, level: int, column: int, row: int) -> np.ndarray:
    """A tile of at most TILE_PX px a side, uint8 [h, w, 3].

    Raises:
        APIError: 404, outside the image.
    """
    frame, step = source.frame, TILE_PX << level
    left, top = column * step, row * step
    if not level < levels(frame) or left >= frame.width or top >= frame.height:
        raise APIError(404, "no such tile", code="tile_not_found")
    right, bottom = min(left + step, frame.width), min(top + step, frame.height)
    size = Frame(-(-(right - left) >> level), -(-(bottom - top) >> level))
    return source.window(Box(left, top, right, bottom, frame), size)


def encoded(picture: np.ndarray, form: str) -> bytes:
    """A picture as PNG or JPEG."""
    data, options = io.BytesIO(), {"quality": 92, "subsampling": 0} if form == "JPEG" else {"compress_level": 1}
    Image.fromarray(picture).save(data, form, **options)
    return data.getvalue()


def _numbers(request: Request, name: str, count: int) -> list[float]:
    said = request.query_params.get(name, "")
    try:
        numbers = [float(part) for part in said.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        what = "a number" if count == 1 else f"{count} numbers, separated by commas"
        raise APIError(400, f"{name}: must be {what}", name)
    return numbers


def _side(request: Request, name: str) -> int:
    (side,) = _numbers(request, name, 1)
    if side != int(side) or not 1 <= side <= _MOST_SIDE:
        raise APIError(400, f"{name}: must be a whole number of px, 1 to {_MOST_SIDE}", name)
    return int(side)


async def get_image(request: Request) -> JSONResponse:
    """Says how large an image is, and whether its tiles are ready."""
    service: Service = request.app.state.service
    stored = service.uploads.get(request.path_params["file_id"])
    return JSONResponse(
        {
            "id": stored.id,
            "filename": stored.filename,
            "width": stored.frame.width,
            "height": stored.frame.height,
            "tile_px": TILE_PX,
            "levels": levels(stored.frame),
            "ready": stored.ready.done() and not stored.ready.exception(),
            "error": str(stored.ready.exception() or "") or None if stored.ready.done() else None,
            "crs": _crs(stored),
        }
    )


def _crs(stored: StoredFile) -> str | None:
    """The name of an image's CRS, such as EPSG:32633, or its WKT; None as long as nobody knows it."""
    ready = stored.ready.done() and not stored.ready.exception()
    where = georeference_of(stored.ready.result()) if ready else None
    return (crs_name(where.crs) or where.crs) if where is not None and where.crs else None


async def get_tile(request: Request) -> Response:
    """Gives a tile as JPEG."""
    service, path = request.app.state.service, request.path_params
    with service.uploads.using(path["file_id"]) as stored:
        place = (min(path[name], 1 << 30) for name in ("level", "column", "row"))

        def made() -> bytes:
            return encoded(tile(stored.source(), *place), "JPEG")

        return Response(await anyio.to_thread.run_sync(made, limiter=_READERS), media_type="image/jpeg", headers=_KEPT)


async def get_window(request: Request) -> Response:
    """Gives any window, in px of the original, at any size, as PNG."""
    service: Service = request.app.state.service
    corners = _numbers(request, "box", 4)
    size = Frame(_side(request, "width"), _side(request, "height"))
    with service.uploads.using(request.path_params["file_id"]) as stored:
        box = _box(corners, stored.frame)

        def made() -> bytes:
            return encoded(stored.source().window(box, size), "PNG")

        return Response(await anyio.to_thread.run_sync(made, limiter=_READERS), media_type="image/png", headers=_KEPT)


class AskedBox(Strict):
    """A box with what was asked about it."""

    box: list[Number] = Field(min_length=4, max_length=4, description="x1 y1 x2 y2 in px of the original")
    question: str | None = None
    answer: str | None = None


class AskedBoxes(Strict):
    """Boxes of one image."""

    boxes: list[AskedBox] = Field(max_length=10_000)


async def make_geojson(request: Request) -> JSONResponse:
    """Turns boxes of an image into GeoJSON in WGS 84."""
    service: Service = request.app.state.service
    with service.uploads.using(request.path_params["file_id"]) as stored, service.memory.share() as memory:
        given = checked(AskedBoxes, await read_json(request, _JSON_BYTES, service.limits.body_seconds, memory))
        where = georeference_of(stored.source())
        if where is None or not where.crs:
            raise APIError(400, f"{stored.id}: nobody knows where this image lies", code="no_georeference")
        placed = [
            Placed(_box(one.box, stored.frame), where, one.model_dump(include={"question", "answer"}))
            for one in given.boxes
        ]
        features = await anyio.to_thread.run_sync(lambda: [feature(one) for one in placed], limiter=_READERS)
    return JSONResponse({"type": "FeatureCollection", "features": features}, media_type="application/geo+json")


def _box(numbers: list[float], frame: Frame) -> Box:
    x1, y1, x2, y2 = numbers
    box = clamped(Box(x1, y1, x2, y2, frame))
    if box is None:
        raise APIError(400, "box: has no area inside the image", "box", "invalid_value")
    return box


async def get_examples(request: Request) -> JSONResponse:
    """Lists images that the server offers, each with a question."""
    return JSONResponse(request.app.state.service.examples)


async def get_tools(request: Request) -> JSONResponse:
    """Lists the tools that questions may offer, each with the JSON schema of its parameters."""
    return JSONResponse(list(request.app.state.service.settings.tools.values()))


ROUTES = [
    Route("/v1/examples", get_examples, methods=["GET"]),
    Route("/v1/images/{file_id}", get_image, methods=["GET"]),
    Route("/v1/images/{file_id}/tiles/{level:int}/{column:int}_{row:int}", get_tile, methods=["GET"]),
    Route("/v1/images/{file_id}/window", get_window, methods=["GET"]),
    Route("/v1/images/{file_id}/geojson", make_geojson, methods=["POST"]),
    Route("/v1/tools", get_tools, methods=["GET"]),
]
