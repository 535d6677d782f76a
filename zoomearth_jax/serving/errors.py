"""What a client is told that asked for something impossible: a status and OpenAI's form of an error."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_GONE = 499  # the client has left; nobody reads the answer


class APIError(Exception):
    """A request that can't be answered.

    Attributes:
        status: HTTP's status.
        message: one line: what is wrong, where, what to do.
        param: the field that is wrong, such as `messages[0].content`.
        code: a word for programs, such as `model_not_found`.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, " ".join(message.split()), param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict:
        """OpenAI's form."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


def busy(message: str, retry_after: float, code: str = "queue_full") -> APIError:
    """A request that may succeed later: 429 with Retry-After in whole seconds."""
    return APIError(429, message, code=code, headers={"Retry-After": str(max(1, round(retry_after)))})


async def on_api_error(_: Request, error: Exception) -> Response:
    """The answer to a request that was refused."""
    assert isinstance(error, APIError)
    return error.response


async def on_http_error(_: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: unknown paths, wrong methods, broken forms."""
    assert isinstance(error, HTTPException)
    said = {404: "no such path; /openapi.json lists them", 405: "this path doesn't take that method"}
    message = said.get(error.status_code, str(error.detail))
    return APIError(error.status_code, message, headers=error.headers).response


async def on_bug(_: Request, __: Exception) -> Response:
    """A bug: the client learns nothing of the inside; Starlette raises it again, so that the server's log has the traceback."""
    return APIError(500, "the server failed on this request; its log says why").response


async def on_disconnect(_: Request, __: Exception) -> Response:
    """A client that left while its body was read."""
    return Response(status_code=_GONE)


HANDLERS = {
    APIError: on_api_error,
    HTTPException: on_http_error,
    ClientDisconnect: on_disconnect,
    Exception: on_bug,
}
