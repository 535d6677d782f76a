"""Servers in threads of this process, with the shipped model that speaks the protocol."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from zoomearth_jax.configs.generation import GeneratorConfig
from zoomearth_jax.evaluation.asking import LoadedPolicy
from zoomearth_jax.serving.app import make_app
from zoomearth_jax.serving.generation import Generator
from zoomearth_jax.serving.server import DrainingServer, bound
from zoomearth_jax.serving.service import Service, ServiceSettings

NAME = "nano-grpo"


@contextlib.contextmanager
def served(
    policy: LoadedPolicy, rows: int = 2, queue: int = 8, slots: int = 0, drain: float = 300.0, **settings
) -> Iterator[Running]:
    """A server; `settings` are those of `ServiceSettings`."""
    generator = Generator(policy, GeneratorConfig(rows=rows, queue=queue, slots=slots, steps=()))
    service = Service(ServiceSettings(NAME, **settings), policy, generator)
    server = DrainingServer(make_app(service), service, drain)
    with bound("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.005)
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", service, server, thread)
        finally:
            if thread.is_alive():
                server.handle_exit(0, None)
            thread.join(120)
    assert not thread.is_alive()


class Running:
    """A server at work."""

    def __init__(self, url: str, service: Service, server: DrainingServer, thread: threading.Thread):
        self.url, self.service, self.server, self.thread = url, service, server, thread
        self.port = int(url.rpartition(":")[2])

    @contextlib.contextmanager
    def slowed(self, seconds: float) -> Iterator[None]:
        """Each visit of the rows takes so much longer."""
        batches = self.service.generator._batches
        write = batches.write

        def slowly(jobs):
            time.sleep(seconds)
            return write(jobs)

        batches.write = slowly
        try:
            yield
        finally:
            batches.write = write


def png(pixels: np.ndarray) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def url_of(file: bytes, kind: str = "image/png") -> str:
    """A data URL."""
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def chat(text: str = "How many sites are there?", *images: str, **fields) -> dict:
    """The body of a chat completion: a user's message with images, then a text."""
    parts = [{"type": "image_url", "image_url": {"url": image}} for image in images]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
    return {"model": NAME, "messages": messages, "temperature": 0, **fields}


def until(condition, seconds: float = 60.0) -> None:
    """Waits for something to become true."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "did not happen in time"
        time.sleep(0.01)


def scene_file(folder: Path, scene, side: int = 1024) -> Path:
    """A scene as a PNG file."""
    path = folder / "scene.png"
    scene.write(path, side)
    return path
