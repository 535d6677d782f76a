"""Bodies of requests under limits of size and time, and their JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anyio
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Receive

from zoomearth_jax.serving.budget import Share
from zoomearth_jax.serving.errors import APIError

_COPIES = 3  # of a body at the same time: as it came, as texts, and what they encode
_IN_THREAD = 1_000_000  # bytes of JSON that would hold the other requests up


async def read_json(request: Request, limit: int, seconds: float, memory: Share) -> dict:
    """The JSON object that a request's body holds.

    Args:
        limit: bytes.
        seconds: time in which it must arrive.
        memory: is charged for it.

    Raises:
        APIError: 415, 413, 408, 400, or 429 where there is no memory for it.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise APIError(415, "the body must be JSON, with the header Content-Type: application/json")
    check_length(request, limit)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise too_large(limit)
                memory.add(_COPIES * len(chunk))
                body += chunk
    except TimeoutError:
        raise APIError(408, f"the body did not arrive within {seconds:g} s", code="request_timeout") from None
    if len(body) > _IN_THREAD:
        return await anyio.to_thread.run_sync(parsed, bytes(body))
    return parsed(bytes(body))


def check_length(request: Request, limit: int) -> None:
    """Refuses a body by its Content-Length, before any of it is read."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:18]) > limit:
        raise too_large(limit)


def too_large(limit: int) -> APIError:
    """What is said of a body over the limit."""
    hint = "send large images to /v1/files or /v1/uploads"
    return APIError(413, f"the body is over the limit of {limit:,} bytes; {hint}", code="request_too_large")


def parsed(body: bytes) -> dict:
    """The object that JSON spells.

    Raises:
        APIError: 400, of anything else.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8") if b"\\ud" in body.lower() else None
    except UnicodeEncodeError:
        raise APIError(400, "the body holds half a surrogate pair, which is no text") from None
    except (ValueError, RecursionError) as error:
        raise APIError(400, f"the body is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise APIError(400, "the body must be a JSON object")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


async def read_form(request: Request, limit: int, seconds: float) -> dict[str, UploadFile | str]:
    """The fields of a multipart form, with at most one file, which lies in a temporary file. Close the request after use.

    Args:
        limit: bytes of the whole form.
        seconds: time in which it must arrive.

    Raises:
        APIError: 415, 413, 408 or 400.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise APIError(415, "the body must be a form, with the header Content-Type: multipart/form-data; boundary=…")
    check_length(request, limit)
    try:
        async with asyncio.timeout(seconds):
            form = await request.form(max_files=1, max_fields=16, max_part_size=10_000)
    except TimeoutError:
        raise APIError(408, f"the upload did not arrive within {seconds:g} s", code="request_timeout") from None
    return dict(form.items())


def counted(receive: Receive, limit: int, room: Share) -> Receive:
    """`receive`, that counts the bytes of a body and charges `room` for them.

    Raises:
        APIError: 413 over `limit`, 429 where there is no room.
    """
    taken = 0

    async def counting():
        nonlocal taken
        message = await receive()
        size = len(message.get("body", b""))
        taken += size
        if taken > limit:
            raise too_large(limit)
        room.add(size)
        return message

    return counting
