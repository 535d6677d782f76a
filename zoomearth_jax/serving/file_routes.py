"""`/v1/files` and `/v1/uploads`, in OpenAI's own forms."""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from zoomearth_jax.serving.budget import Share
from zoomearth_jax.serving.errors import APIError
from zoomearth_jax.serving.request import counted, read_form, read_json
from zoomearth_jax.serving.schema import Strict, checked
from zoomearth_jax.serving.service import Service
from zoomearth_jax.serving.upload_parts import PART_BYTES
from zoomearth_jax.serving.uploads import MB, PURPOSES

_SMALL = 1 << 20  # bytes of a body without an image
_FORM = 20_000  # bytes of a form beside its file


class NewUpload(Strict):
    """A file that will come in parts."""

    filename: str = Field(min_length=1, max_length=255)
    bytes: int = Field(ge=1, le=2**53)
    mime_type: str = Field(max_length=255)
    purpose: str = Field(description=f"one of {', '.join(PURPOSES)}")


class PartIds(Strict):
    """The parts of a file in their order."""

    part_ids: list[str] = Field(min_length=1, max_length=10_000)
    md5: str | None = None


def _purpose(said: object) -> str:
    if said not in PURPOSES:
        raise APIError(400, f"purpose: must be one of {', '.join(PURPOSES)}", "purpose")
    return str(said)


async def create_file(request: Request) -> JSONResponse:
    """Takes a file as a form: `file` and `purpose`."""
    service: Service = request.app.state.service
    limit = service.limits.upload_mb * MB + _FORM
    with service.uploading():
        room = service.uploads.disk.share()
        try:
            stored = await _stored(service, request, limit, room)
        except BaseException:
            room.release()
            raise
    return JSONResponse(stored.described(service.limits.file_seconds))


async def _stored(service: Service, request: Request, limit: int, room: Share):
    form_request = Request(request.scope, counted(request.receive, limit, room))
    try:
        form = await read_form(form_request, limit, service.limits.seconds)
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise APIError(400, "the form has no file in its field `file`", "file")
        purpose = _purpose(form.get("purpose"))
        name = Path(file.filename or "image").name[:255] or "image"

        def fill(path: Path) -> None:
            with open(path, "wb") as out:
                shutil.copyfileobj(file.file, out, 1 << 20)

        return await anyio.to_thread.run_sync(service.uploads.add, name, purpose, fill, room)
    finally:
        await form_request.close()


async def get_file(request: Request) -> JSONResponse:
    """Says what is known of a file."""
    service: Service = request.app.state.service
    stored = service.uploads.get(request.path_params["file_id"])
    return JSONResponse(stored.described(service.limits.file_seconds))


async def delete_file(request: Request) -> JSONResponse:
    """Forgets a file."""
    service: Service = request.app.state.service
    file_id = request.path_params["file_id"]
    await anyio.to_thread.run_sync(service.uploads.delete, file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


async def create_upload(request: Request) -> JSONResponse:
    """Begins a file that comes in parts."""
    service: Service = request.app.state.service
    with service.memory.share() as memory:
        new = checked(NewUpload, await read_json(request, _SMALL, service.limits.body_seconds, memory))
    upload = service.partial.begin(Path(new.filename).name[:255], _purpose(new.purpose), new.mime_type, new.bytes)
    return JSONResponse(upload.described(service.limits.file_seconds))


async def add_part(request: Request) -> JSONResponse:
    """Takes a part as a form: `data`."""
    service: Service = request.app.state.service
    upload_id, limit = request.path_params["upload_id"], PART_BYTES + _FORM
    with service.uploading(), service.uploads.disk.share() as room:
        form_request = Request(request.scope, counted(request.receive, limit, room))
        try:
            form = await read_form(form_request, limit, service.limits.seconds)
            data = form.get("data")
            if not isinstance(data, UploadFile):
                raise APIError(400, "the form has no file in its field `data`", "data")
            part = await anyio.to_thread.run_sync(service.partial.add_part, upload_id, data.file)
        finally:
            await form_request.close()
    return JSONResponse({"id": part[0], "object": "upload.part", "created_at": part[1], "upload_id": upload_id})


async def complete_upload(request: Request) -> JSONResponse:
    """Makes the file of its parts."""
    service: Service = request.app.state.service
    with service.memory.share() as memory:
        given = checked(PartIds, await read_json(request, _SMALL, service.limits.body_seconds, memory))
    upload_id = request.path_params["upload_id"]
    upload = await anyio.to_thread.run_sync(service.partial.complete, upload_id, given.part_ids, given.md5)
    return JSONResponse(upload.described(service.limits.file_seconds))


async def cancel_upload(request: Request) -> JSONResponse:
    """Forgets the parts."""
    service: Service = request.app.state.service
    upload = await anyio.to_thread.run_sync(service.partial.cancel, request.path_params["upload_id"])
    return JSONResponse(upload.described(service.limits.file_seconds))


ROUTES = [
    Route("/v1/files", create_file, methods=["POST"]),
    Route("/v1/files/{file_id}", get_file, methods=["GET"]),
    Route("/v1/files/{file_id}", delete_file, methods=["DELETE"]),
    Route("/v1/uploads", create_upload, methods=["POST"]),
    Route("/v1/uploads/{upload_id}/parts", add_part, methods=["POST"]),
    Route("/v1/uploads/{upload_id}/complete", complete_upload, methods=["POST"]),
    Route("/v1/uploads/{upload_id}/cancel", cancel_upload, methods=["POST"]),
]
