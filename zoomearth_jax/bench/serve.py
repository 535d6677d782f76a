"""`zoomearth bench serve`: many clients of a server at the same time against one alone, each answer compared with `ask`'s."""

from __future__ import annotations

import asyncio
import base64
import collections
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.questions.scenes import Scene
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.asking import load

_START_SECONDS = 600
_BOUNDARY = "zoomearth-bench"


@dataclasses.dataclass(frozen=True)
class ServeBenchConfig:
    """Many clients of a server at the same time against one alone, each with an image and a question of its own.

    Attributes:
        model: see `zoomearth serve`.
        clients: that ask at the same time.
        requests: of each client in a round; the one client alone asks every client's question once in a round.
        rounds: of both, in turns; medians count.
        side: px per side of the images, procedural scenes.
        images: `uploads`: each client has uploaded its image; `bodies`: it is in every request, as a data URL.
        json: print JSON.
    """

    model: str = "nano-grpo"
    clients: int = 64
    requests: int = 8
    rounds: int = 5
    side: int = 1024
    images: Literal["uploads", "bodies"] = "uploads"
    json: bool = False

    def __post_init__(self):
        if min(self.clients, self.requests, self.rounds) < 1 or not 112 <= self.side <= 4096:
            raise UserError("bench serve: clients, requests and rounds must be positive, side between 112 and 4096 px")


class Reply(NamedTuple):
    """What came of one request: the number of the question, the texts of all turns (None where it was lost), and seconds."""

    number: int
    texts: tuple[str, ...] | None
    seconds: float


def bench_serve(config: ServeBenchConfig) -> list[dict]:
    """One row: `throughput_ratio, lost, mixed, changed`, requests per second, the server's processor time a request, latencies.

    `lost` requests got no answer; `mixed` ones got the texts that belong to another question and not to theirs; `changed` ones
    got texts that `ask` gives to none.
    """
    questions = scene_questions("test", 7, 0, config.clients)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.png" for number in range(config.clients)]
        for question, file in zip(questions, files, strict=True):
            assert isinstance(question.image, Scene)
            question.image.write(file, config.side)
        expected = _expected(config.model, questions, files)
        with running(config.model, "--limits.files", str(config.clients)) as server:
            alone, together = asyncio.run(_measured(config, server, questions, files))
    return [_row(config, expected, alone, together)]


def _expected(model: str, questions: Sequence[Question], files: Sequence[Path]) -> list[tuple[str, ...]]:
    """The texts that `ask` gives, one question after the other."""
    policy = load(model)
    answers = [policy.ask(file, question.text, temperature=0) for question, file in zip(questions, files, strict=True)]
    return [tuple(turn.text for turn in answer.turns) for answer in answers if not isinstance(answer, list)]


class Address(NamedTuple):
    """Where a server of a process of its own is."""

    port: int
    pid: int


@contextmanager
def running(model: str, *flags: str) -> Iterator[Address]:
    """A server in a process of its own. It is stopped by SIGTERM.

    Raises:
        UserError: it didn't start, or didn't end by itself.
    """
    command = [sys.executable, "-m", "zoomearth_jax.cli", "serve", "--model", model, "--port", "0", *flags]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert server.stderr is not None
    said = server.stderr
    reading = threading.Thread(target=lambda: collections.deque(said, maxlen=0), daemon=True)  # lest the pipe fill up
    try:
        line = next((line for line in said if "is served at" in line), "")
        reading.start()
        if not line:
            raise UserError("bench serve: the server did not start")
        yield Address(int(line.rpartition(":")[2].partition("/")[0]), server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            code = server.wait(180)
        except subprocess.TimeoutExpired:
            server.kill()
            code = server.wait()
        if reading.ident is not None:
            reading.join()
        said.close()
    if code:
        raise UserError(f"bench serve: the server ended with {code}")


class Client:
    """One keep-alive connection. It does little, because it shares the processor with the server."""

    def __init__(self, port: int):
        self._port = port

    async def __aenter__(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_) -> None:
        self._writer.close()

    async def send(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, dict]:
        """The status and the JSON that the server answers."""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Type: {kind}\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lengths = [line for line in head.lower().split("\r\n") if line.startswith("content-length:")]
        answer = await self._reader.readexactly(int(lengths[0].partition(":")[2]))
        return int(head.split(" ", 2)[1]), json.loads(answer)

    async def upload(self, file: Path) -> str:
        """The handle of a file, once it is ready."""
        part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nvision\r\n--{_BOUNDARY}\r\n'
        part += f'Content-Disposition: form-data; name="file"; filename="{file.name}"\r\n\r\n'
        body = part.encode() + file.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()
        _, stored = await self.send("POST", "/v1/files", body, f"multipart/form-data; boundary={_BOUNDARY}")
        while not (await self.send("GET", f"/v1/images/{stored['id']}"))[1]["ready"]:
            await asyncio.sleep(0.05)
        return stored["id"]

    async def ask(self, number: int, body: bytes) -> Reply:
        """Asks one question."""
        began = time.perf_counter()
        status, answer = await self.send("POST", "/v1/chat/completions", body)
        seconds = time.perf_counter() - began
        if status != 200:
            return Reply(number, None, seconds)
        trace = answer["choices"][0]["message"]["trace"]
        return Reply(number, tuple(turn["text"] for turn in trace["turns"]), seconds)


class Round(NamedTuple):
    """All replies of a round, the seconds that they took together, and those of the server's processor time."""

    replies: list[Reply]
    seconds: float
    processor: float


def _processor(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _measured(
    config: ServeBenchConfig, server: Address, questions: Sequence[Question], files: Sequence[Path]
) -> tuple[list[Round], list[Round]]:
    """Rounds of one client alone, and of all; the first of each is not counted."""
    async with Client(server.port) as one:
        if config.images == "uploads":
            places = [await one.upload(file) for file in files]
        else:
            places = [f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}" for file in files]
        bodies = [_body(config.model, place, question.text) for place, question in zip(places, questions, strict=True)]
        alone, together = [], []
        for _ in range(config.rounds + 1):
            alone.append(await _timed(server, _alone(server.port, bodies)))
            together.append(await _timed(server, _together(server.port, bodies, config.requests)))
    return alone[1:], together[1:]


async def _timed(server: Address, asking: Coroutine[Any, Any, list[Reply]]) -> Round:
    began, processor = time.perf_counter(), _processor(server.pid)
    replies = await asking
    return Round(replies, time.perf_counter() - began, _processor(server.pid) - processor)


async def _alone(port: int, bodies: Sequence[bytes]) -> list[Reply]:
    async with Client(port) as one:
        return [await one.ask(number, body) for number, body in enumerate(bodies)]


async def _together(port: int, bodies: Sequence[bytes], requests: int) -> list[Reply]:
    async def client(number: int, body: bytes) -> list[Reply]:
        async with Client(port) as one:
            return [await one.ask(number, body) for _ in range(requests)]

    replies = await asyncio.gather(*(client(number, body) for number, body in enumerate(bodies)))
    return [reply for own in replies for reply in own]


def _body(model: str, place: str, question: str) -> bytes:
    content = [{"type": "image_url", "image_url": {"url": place}}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    name = Path(model).name
    return json.dumps({"model": name, "agent": True, "temperature": 0, "messages": messages}).encode()


def _row(config: ServeBenchConfig, expected: list[tuple[str, ...]], alone: list[Round], together: list[Round]) -> dict:
    replies = [reply for round_ in (*alone, *together) for reply in round_.replies]
    wrong = [reply for reply in replies if reply.texts is not None and reply.texts != expected[reply.number]]
    mixed = sum(reply.texts in expected for reply in wrong)
    one, all_ = (
        statistics.median(len(round_.replies) / round_.seconds for round_ in rounds) for rounds in (alone, together)
    )
    latencies = [sorted(reply.seconds for round_ in rounds for reply in round_.replies) for rounds in (alone, together)]
    row: dict[str, Any] = {
        "throughput_ratio": all_ / one,
        "lost": sum(reply.texts is None for reply in replies),
        "mixed": mixed,
    }
    row |= {"changed": len(wrong) - mixed, "requests": len(replies), "clients": config.clients, "images": config.images}
    row |= {"requests_per_s": all_, "alone_requests_per_s": one}
    for name, rounds in (("alone", alone), ("together", together)):
        row[f"{name}_processor_ms"] = statistics.median(1000 * r.processor / len(r.replies) for r in rounds)
    for name, own in zip(("alone", "together"), latencies, strict=True):
        row |= {
            f"{name}_p50_ms": 1000 * statistics.median(own),
            f"{name}_p99_ms": 1000 * own[int(0.99 * (len(own) - 1))],
        }
    return row
