"""`/openapi.json`: what the server takes and gives, for programs that make clients or tests of it."""

from __future__ import annotations

from typing import Any

from zoomearth_jax import __version__
from zoomearth_jax.serving.file_routes import NewUpload, PartIds
from zoomearth_jax.serving.image_routes import AskedBoxes
from zoomearth_jax.serving.openai_schema import ChatRequest
from zoomearth_jax.serving.schema import Strict
from zoomearth_jax.serving.uploads import PURPOSES

_BODIES = (ChatRequest, NewUpload, PartIds, AskedBoxes)
_OBJECT = {"application/json": {"schema": {"type": "object"}}}


def openapi(name: str, with_key: bool) -> dict[str, Any]:
    """The document.

    Args:
        name: of the model.
        with_key: whether clients must send a key.
    """
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "zoomearth serve", "version": __version__, "description": f"The model is called {name}."},
        "paths": {path: dict(methods) for path, methods in _paths().items()},
        "components": {"schemas": _schemas()},
    }
    if with_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _schemas() -> dict[str, Any]:
    error: dict[str, Any] = {"message": {"type": "string"}, "type": {"type": "string"}}
    error |= {name: {"type": ["string", "null"]} for name in ("param", "code")}
    inner = {"type": "object", "required": list(error), "properties": error}
    found: dict[str, Any] = {"Error": {"type": "object", "required": ["error"], "properties": {"error": inner}}}
    for kind in _BODIES:
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {})
        found[kind.__name__] = schema
    return found


def _body(kind: type[Strict]) -> dict:
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _form(file: str, **fields: Any) -> dict:
    properties = {file: {"type": "string", "format": "binary"}, **fields}
    schema = {"type": "object", "required": list(properties), "properties": properties}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _method(summary: str, *refusals: int, content: dict | None = None, **more: Any) -> dict:
    """A method: what it does, and the statuses with which it refuses."""
    refused = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    statuses = {status: {"description": _STATUSES[status], **refused} for status in (*refusals, 401, 403, 503)}
    answers = {"200": {"description": "what was asked for", "content": _OBJECT if content is None else content}}
    return {"summary": summary, "responses": answers | {str(status): said for status, said in statuses.items()}, **more}


_STATUSES = {
    400: "something in the request is wrong",
    401: "no valid API key",
    403: "not allowed",
    404: "no such thing",
    408: "the body didn't arrive in time",
    409: "not ready yet",
    413: "too large",
    415: "a body of another type",
    429: "too much at the same time; Retry-After says when to try again",
    500: "the server failed",
    503: "about to stop",
    504: "it took too long",
}
_BODY = (400, 408, 413, 415, 429)  # refusals of whatever takes a body


def _parameter(name: str, place: str = "path", **schema: Any) -> dict:
    return {"name": name, "in": place, "required": True, "schema": schema or {"type": "string"}}


def _paths() -> dict[str, dict[str, Any]]:
    file, upload, picture = _parameter("file_id"), _parameter("upload_id"), {"type": "string", "format": "binary"}
    place = [_parameter(name, type="integer", minimum=0, maximum=2**31) for name in ("level", "column", "row")]
    sides = [_parameter(name, "query", type="integer", minimum=1, maximum=4096) for name in ("width", "height")]
    box = _parameter("box", "query", type="string", description="x1,y1,x2,y2 in px of the original")
    text = {"text/plain": {"schema": {"type": "string"}}}
    answer = {**_OBJECT, "text/event-stream": {"schema": {"type": "string"}}}
    ask = _method("Answers a conversation", *_BODY, 404, 409, 504, content=answer, requestBody=_body(ChatRequest))
    lists = {"application/json": {"schema": {"type": "array", "items": {"type": "object"}}}}
    purpose = {"type": "string", "enum": list(PURPOSES)}
    return {
        "/v1/chat/completions": {"post": ask},
        "/v1/models": {"get": _method("Lists the models")},
        "/v1/models/{model}": {"get": _method("Describes a model", 404), "parameters": [_parameter("model")]},
        "/v1/files": {"post": _method("Uploads an image", *_BODY, requestBody=_form("file", purpose=purpose))},
        "/v1/files/{file_id}": {
            "get": _method("Describes a file", 404),
            "delete": _method("Deletes a file", 404),
            "parameters": [file],
        },
        "/v1/uploads": {"post": _method("Begins an upload in parts", *_BODY, requestBody=_body(NewUpload))},
        "/v1/uploads/{upload_id}/parts": {
            "post": _method("Uploads a part", *_BODY, 404, requestBody=_form("data")),
            "parameters": [upload],
        },
        "/v1/uploads/{upload_id}/complete": {
            "post": _method("Makes a file of its parts", *_BODY, 404, requestBody=_body(PartIds)),
            "parameters": [upload],
        },
        "/v1/uploads/{upload_id}/cancel": {"post": _method("Forgets an upload", 400, 404), "parameters": [upload]},
        "/v1/images/{file_id}": {"get": _method("Describes an uploaded image", 404), "parameters": [file]},
        "/v1/images/{file_id}/tiles/{level}/{column}_{row}": {
            "get": _method("Gives a tile", 400, 404, 409, content={"image/jpeg": {"schema": picture}}),
            "parameters": [file, *place],
        },
        "/v1/images/{file_id}/window": {
            "get": _method("Gives a window", 400, 404, 409, content={"image/png": {"schema": picture}}),
            "parameters": [file, box, *sides],
        },
        "/v1/images/{file_id}/geojson": {
            "post": _method(
                "Turns boxes into GeoJSON",
                *(*_BODY, 404, 409),
                content={"application/geo+json": {"schema": {"type": "object"}}},
                requestBody=_body(AskedBoxes),
            ),
            "parameters": [file],
        },
        "/v1/examples": {"get": _method("Lists the examples", content=lists)},
        "/v1/tools": {"get": _method("Lists the tools", content=lists)},
        "/health": {"get": _method("Says whether requests are taken")},
        "/metrics": {"get": _method("Gives Prometheus its figures", content=text)},
    }
