"""`/v1/chat/completions` and `/v1/models`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from zoomearth_jax.configs.generation import ReplyConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.serving.answers import Answer, Stream
from zoomearth_jax.serving.chat_inputs import Reader
from zoomearth_jax.serving.choices import End, Events, agent_events, chat_events, joined, told
from zoomearth_jax.serving.errors import APIError
from zoomearth_jax.serving.openai_schema import ChatRequest, check_whole
from zoomearth_jax.serving.request import read_json
from zoomearth_jax.serving.schema import checked
from zoomearth_jax.serving.service import AGENT, Service
from zoomearth_jax.serving.uploads import MB

T = TypeVar("T")
Told = AsyncGenerator[tuple[int, dict | End], None]  # of all choices


async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation, at once or as a stream of server-sent events."""
    service: Service = request.app.state.service
    limits = service.limits
    deadline = asyncio.get_running_loop().time() + limits.seconds
    async with contextlib.AsyncExitStack() as held:
        memory = held.enter_context(service.memory.share())
        body = checked(ChatRequest, await read_json(request, limits.body_mb * MB, limits.body_seconds, memory))
        check_whole(body, limits.choices)
        agent = plays_episodes(service, body)
        answer = Answer(body.model, body.n or 1, agent)
        reader = Reader(service, memory, held.enter_context(contextlib.ExitStack()))
        with told():
            choices = await unless_gone(request, _begun(service, body, reader, agent, deadline))
        events = await held.enter_async_context(contextlib.aclosing(joined(choices, deadline)))
        first = await unless_gone(request, _next(events))  # what is refused is refused with a status
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return Stream(answer.stream(first, events, usage), held.pop_all())
        return JSONResponse(await unless_gone(request, answer.whole(first, events)))


def plays_episodes(service: Service, body: ChatRequest) -> bool:
    """Whether a request is for the agent mode.

    Raises:
        APIError: 404, of an unknown model; 400, where fields of the agent mode stand in a plain chat.
    """
    name = service.settings.name
    if body.model not in (name, name + AGENT):
        said = f"the model {body.model[:80]!r} does not exist; this server has {name!r} and {name + AGENT!r}"
        raise APIError(404, said, "model", "model_not_found")
    agent = body.model != name if body.agent is None else body.agent
    for field in ("box", "tools_offered"):
        if getattr(body, field) is not None and not agent:
            raise APIError(400, f"{field}: goes with the agent mode (agent: true)", field, "invalid_value")
    for tool in body.tools_offered or ():
        if tool not in service.settings.tools:
            raise APIError(400, f"tools_offered: no tool {tool[:80]!r}; GET /v1/tools lists them", "tools_offered")
    return agent


async def _begun(service: Service, body: ChatRequest, reader: Reader, agent: bool, deadline: float) -> list[Events]:
    """The choices of a request, none of which has begun to be told."""
    reply, count = _reply(body, service.limits.tokens), body.n or 1
    try:
        async with asyncio.timeout_at(deadline):
            if agent:
                asked, offered = await reader.asked(body), None
                if body.tools_offered:
                    names = body.tools_offered
                    offered = await anyio.to_thread.run_sync(service.offered, names, asked.image, asked.question)
                return [agent_events(service.agent, asked, reply, choice, offered) for choice in range(count)]
            messages = await reader.messages(body)
            variables = body.chat_template_kwargs or {}
            begin = service.begin_chat
            return [
                chat_events(one) for one in await anyio.to_thread.run_sync(begin, messages, variables, reply, count)
            ]
    except TimeoutError:
        raise APIError(504, "the answer took too long", code="timeout") from None


def _reply(body: ChatRequest, most: int) -> ReplyConfig:
    """What a request asks for, in the generator's words."""
    temperature = body.temperature
    sampling = SamplingConfig(
        temperature=0.0 if temperature is not None and temperature < 1e-6 else temperature,
        top_k=max(body.top_k or 0, 0),
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-6),
        repetition_penalty=body.repetition_penalty or 1.0,
    )
    seed = secrets.randbits(32) if body.seed is None else body.seed
    tokens = None if body.asked_tokens is None else min(body.asked_tokens, most)
    return ReplyConfig(sampling, seed, tokens, body.stops)


async def _next(events: Told) -> tuple[int, dict | End]:
    return await anext(events)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled where the client goes away.

    Raises:
        ClientDisconnect: the client has gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _model(service: Service, name: str) -> dict:
    return {"id": name, "object": "model", "created": service.created, "owned_by": "zoomearth"}


async def list_models(request: Request) -> JSONResponse:
    """Lists the model, and the model as an agent."""
    service: Service = request.app.state.service
    names = (service.settings.name, service.settings.name + AGENT)
    return JSONResponse({"object": "list", "data": [_model(service, name) for name in names]})


async def get_model(request: Request) -> JSONResponse:
    """Describes one of them."""
    service: Service = request.app.state.service
    name = request.path_params["model"]
    if name not in (service.settings.name, service.settings.name + AGENT):
        raise APIError(404, f"the model {name[:80]!r} does not exist", "model", "model_not_found")
    return JSONResponse(_model(service, name))


ROUTES = [
    Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", get_model, methods=["GET"]),
]
