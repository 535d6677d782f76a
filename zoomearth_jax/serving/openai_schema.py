"""The body of `/v1/chat/completions`: OpenAI's fields, and those of the agent mode."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from zoomearth_jax.serving.errors import APIError
from zoomearth_jax.serving.schema import Strict

Number = Annotated[float, Field(allow_inf_nan=False)]


class TextPart(Strict):
    """A text."""

    type: Literal["text"]
    text: str


class ImageURL(Strict):
    """Where an image is: a data URL, the handle of an upload, or `file:PATH` under the server's root."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description="read by no model here")


class ImagePart(Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageURL


class FileHandle(Strict):
    """The handle of an upload."""

    file_id: str


class FilePart(Strict):
    """An uploaded image."""

    type: Literal["file"]
    file: FileHandle


Part = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]


class ChatMessage(Strict):
    """A message of the conversation; of the assistant's also what the server itself sends with it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: str | None = Field(None, description="ignored")
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[JsonValue] | None = Field(None, description="ignored")
    tool_calls: Annotated[list[JsonValue], Field(max_length=0)] | None = None
    trace: JsonValue = Field(None, description="ignored: what an earlier answer of the agent mode came with")

    @property
    def parts(self) -> list[TextPart | ImagePart | FilePart]:
        """The content as parts."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content or []


class StreamOptions(Strict):
    """What a stream holds beside its texts."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="ignored")


class ResponseFormat(Strict):
    """The form of the answer; only plain text."""

    type: Literal["text"]


class ChatRequest(Strict):
    """A chat completion. Fields of OpenAI's that are named here as ignored change nothing; others are refused."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, description="answers, drawn independently of each other")
    temperature: Number | None = Field(
        None, ge=0, le=2, description="0 takes the likeliest; the checkpoint's own without it"
    )
    top_p: Number | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="0 and -1 turn it off")
    repetition_penalty: Number | None = Field(None, gt=0, le=100)
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1)
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=1, le=2**63)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**63)
    chat_template_kwargs: dict[str, str | float | int | bool | None] | None = Field(
        None, description="variables of the checkpoint's chat template"
    )
    agent: bool | None = Field(None, description="play a whole episode: look, zoom, answer")
    box: list[Number] | None = Field(
        None, description="agent mode: a box that the question is about, x1 y1 x2 y2 in px"
    )
    tools_offered: list[str] | None = Field(
        None, max_length=64, description="agent mode: names of tools that may be used"
    )
    response_format: ResponseFormat | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    presence_penalty: Literal[0] | Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Literal[0] | Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, JsonValue], Field(max_length=0)] | None = None
    tools: Annotated[list[JsonValue], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="ignored")
    user: str | None = Field(None, description="ignored")
    metadata: dict[str, JsonValue] | None = Field(None, description="ignored")
    store: Literal[False] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def asked_tokens(self) -> int | None:
        """The most tokens of an answer, by the newer of the two fields if both are there."""
        return self.max_completion_tokens or self.max_tokens


_STOPS, _STOP_LENGTH = 16, 256


def check_whole(body: ChatRequest, choices: int) -> None:
    """Checks what one field alone doesn't show.

    Args:
        choices: the most `n`.

    Raises:
        APIError: 400.
    """
    _check(not (body.stream_options and not body.stream), "stream_options", "goes with stream: true")
    _check((body.n or 1) <= choices, "n", f"at most {choices}")
    stops_fit = len(body.stops) <= _STOPS and all(0 < len(stop) <= _STOP_LENGTH for stop in body.stops)
    _check(stops_fit, "stop", f"at most {_STOPS} texts of 1 to {_STOP_LENGTH} characters")


def _check(ok: bool, param: str, message: str) -> None:
    if not ok:
        raise APIError(400, f"{param}: {message}", param, "invalid_value")
