"""Answers in OpenAI's form: whole, or as a stream of server-sent events."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from zoomearth_jax.serving.choices import End
from zoomearth_jax.serving.errors import APIError


@dataclasses.dataclass(frozen=True)
class Answer:
    """The frame of an answer.

    Attributes:
        model: as the client called it.
        count: number of choices.
        agent: whether each choice reads pictures of its own; all choices of a plain chat read one prompt.
        id, created: of the answer.
    """

    model: str
    count: int
    agent: bool
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    async def whole(self, first: tuple[int, dict | End], rest: AsyncIterator[tuple[int, dict | End]]) -> dict:
        """All choices at once."""
        ends: dict[int, End] = {}
        if isinstance(first[1], End):
            ends[first[0]] = first[1]
        async for number, event in rest:
            if isinstance(event, End):
                ends[number] = event
        choices = [self._choice(number, end) for number, end in sorted(ends.items())]
        return self._framed("chat.completion", choices) | {"usage": self._usage(list(ends.values()))}

    async def stream(
        self, first: tuple[int, dict | End], rest: AsyncIterator[tuple[int, dict | End]], usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """Chunks as server-sent events; what goes wrong meanwhile becomes an event with an error.

        Args:
            usage: whether a chunk with the usage comes at the end.
        """
        ends: list[End] = []

        def chunk(number: int, event: dict | End) -> bytes:
            if isinstance(event, End):
                ends.append(event)
                return self._chunk(number, {}, event.reason)
            return self._chunk(number, event, None)

        for number in range(self.count):
            yield self._chunk(number, {"role": "assistant", "content": ""}, None)
        try:
            yield chunk(*first)
            async for number, event in rest:
                yield chunk(number, event)
        except APIError as error:
            yield _event(error.body)
            return
        except Exception:
            yield _event(APIError(500, "the server failed on this request; its log says why").body)
            raise
        if usage:
            yield _event(self._framed("chat.completion.chunk", []) | {"usage": self._usage(ends)})
        yield b"data: [DONE]\n\n"

    def _framed(self, kind: str, choices: list[dict]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _choice(self, number: int, end: End) -> dict:
        message: dict[str, Any] = {"role": "assistant", "content": end.content, "refusal": None}
        if end.trace is not None:
            message["trace"] = end.trace
        return {"index": number, "message": message, "logprobs": None, "finish_reason": end.reason}

    def _chunk(self, number: int, delta: dict, reason: str | None) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event(self._framed("chat.completion.chunk", [choice]))

    def _usage(self, ends: list[End]) -> dict[str, int]:
        read = [end.prompt_tokens for end in ends]
        prompt, completion = (
            sum(read) if self.agent else max(read, default=0),
            sum(end.completion_tokens for end in ends),
        )
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event(value: dict) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class Stream(StreamingResponse):
    """Server-sent events; what the answer holds is let go at its end, however that comes."""

    def __init__(self, events: AsyncGenerator[bytes, None], held: contextlib.AsyncExitStack):
        """Takes the events, and what to close after them."""
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        held.push_async_callback(events.aclose)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._held.aclose()
