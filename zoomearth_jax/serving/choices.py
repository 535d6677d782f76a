"""One answer of several, as it is written: what the generator and the agent tell becomes deltas of OpenAI's form, then an end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import anyio
import numpy as np

from zoomearth_jax.configs.generation import ReplyConfig
from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.data_pipeline.images.geometry import geometry
from zoomearth_jax.data_pipeline.images.georeference import georeference_of
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.errors import UserError
from zoomearth_jax.serving.agent import Agent, Answered, LookRequested, PictureShown, TextDelta, TurnStarted
from zoomearth_jax.serving.chat_inputs import Asked
from zoomearth_jax.serving.errors import APIError, busy
from zoomearth_jax.serving.generation import Busy, Closed, Delta, Finished, Generation
from zoomearth_jax.serving.image_routes import encoded


_IN_LOOP = 100_000  # bytes of a picture that is encoded sooner than a thread is asked to


class End(NamedTuple):
    """The end of a choice.

    Attributes:
        content: the whole answer; trace: of the agent mode, else None.
        reason: `stop` or `length`.
        prompt_tokens, completion_tokens: see `Finished`.
    """

    content: str
    trace: dict | None
    reason: str
    prompt_tokens: int
    completion_tokens: int


Events = AsyncGenerator[dict | End, None]  # deltas, then the end


async def chat_events(generation: Generation) -> Events:
    """The events of a plain chat's reply; leaving them gives the row back."""
    texts, end = [], Finished("error", 0, 0)
    try:
        async for event in generation:
            if isinstance(event, Finished):
                end = event
            elif isinstance(event, Delta) and event.text:
                texts.append(event.text)
                yield {"content": event.text}
    finally:
        generation.cancel()
    yield End("".join(texts), None, _reason(end.reason, end.message), end.prompt_tokens, end.completion_tokens)


async def agent_events(agent: Agent, asked: Asked, reply: ReplyConfig, choice: int) -> Events:
    """The events of an episode; leaving them gives the row back.

    Args:
        choice: number of the choice.
    """
    turns: list[dict[str, Any]] = []
    frame = asked.image.frame
    episode = agent.run(asked.image, asked.question, reply, choice=choice, box=asked.box)
    async with contextlib.aclosing(episode):  # type: ignore[type-var]
        async for event in episode:
            match event:
                case TurnStarted(turn):
                    turns.append({"text": "", "box": None, "window": None, "picture": None})
                    yield {"trace": {"event": "turn", "turn": turn + 1}}
                case TextDelta(turn, text):
                    turns[turn]["text"] += text
                    yield {"content": text}
                case LookRequested(turn, box, window):
                    found = {"box": corners(box), "window": corners(window)}
                    turns[turn] |= found
                    yield {"trace": {"event": "look", "turn": turn + 1, **found}}
                case PictureShown(turn, window, picture):
                    url = (
                        data_url(picture)
                        if picture.size < _IN_LOOP
                        else await anyio.to_thread.run_sync(data_url, picture)
                    )
                    shown = {"window": corners(window), "picture": url}
                    turns[turn] |= shown
                    yield {"trace": {"event": "picture", "turn": turn + 1, **shown}}
                case Answered():
                    reason = _reason(event.reason, event.message)
                    said = {
                        "answer": event.answer,
                        "box": corners(event.box),
                        "truncated": event.truncated,
                        "image": {"width": frame.width, "height": frame.height},
                        "geometry": on_earth(asked.image, event.box),
                    }
                    yield {"trace": {"event": "answer", **said}}
                    tokens = event.prompt_tokens, event.completion_tokens
                    yield End(
                        event.answer or "", {"turns": turns, **said}, "length" if event.truncated else reason, *tokens
                    )


def on_earth(image: ImageSource, box: Box | None) -> dict | None:
    """A box as a GeoJSON geometry in WGS 84; None where nobody knows where the image lies."""
    with contextlib.suppress(UserError):
        where = georeference_of(image)
        return None if box is None or where is None or not where.crs else geometry(box, where)
    return None


def corners(box: Box | None) -> list[float] | None:
    """A box as it is written in JSON."""
    return None if box is None else [round(float(corner), 1) for corner in box.corners]


def data_url(picture: np.ndarray) -> str:
    """A picture as a data URL."""
    return "data:image/png;base64," + base64.b64encode(encoded(picture, "PNG")).decode()


def _reason(reason: str, message: str) -> str:
    if reason == "cancelled":
        raise APIError(503, "the server is about to stop", code="draining")
    if reason == "error":
        raise APIError(
            500, "the model failed on this request; the server's log says why", code=message.partition(":")[0]
        )
    return reason


@contextlib.contextmanager
def told():
    """Turns what generator and agent refuse into what a client is told."""
    try:
        yield
    except Busy as error:
        raise busy(str(error), error.retry_after) from None
    except Closed as error:
        raise APIError(503, str(error), code="draining", headers={"Retry-After": "30"}) from None
    except UserError as error:
        raise APIError(400, str(error), code="invalid_value") from None


async def joined(choices: Sequence[Events], deadline: float) -> AsyncGenerator[tuple[int, dict | End], None]:
    """The events of all choices as they come, each with its choice's number; leaving them ends all.

    Args:
        deadline: in the loop's time.

    Raises:
        APIError: what a choice raises, or 504 at the deadline.
    """
    queue: asyncio.Queue[tuple[int, dict | End | BaseException]] = asyncio.Queue()

    async def play(number: int, events: Events) -> None:
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    queue.put_nowait((number, event))
        except Exception as error:
            queue.put_nowait((number, error))

    tasks = [asyncio.create_task(play(number, events)) for number, events in enumerate(choices)]
    left = len(tasks)
    try:
        while left:
            try:
                async with asyncio.timeout_at(deadline):
                    number, event = await queue.get()
            except TimeoutError:
                raise APIError(504, "the answer took too long", code="timeout") from None
            if isinstance(event, BaseException):
                with told():
                    raise event
            left -= isinstance(event, End)
            yield number, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
