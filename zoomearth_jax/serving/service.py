"""The state of one server, which all routes share."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoomearth_jax.configs.generation import ReplyConfig
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.serving import ServerLimits
from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.images.tiles import StoreSettings
from zoomearth_jax.data_pipeline.questions.procedural import site_question
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.questions.scenes import random_scene
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.evaluation.asking import LoadedPolicy
from zoomearth_jax.serving.agent import Agent
from zoomearth_jax.serving.budget import Budget
from zoomearth_jax.serving.errors import busy
from zoomearth_jax.serving.generation import Generation, Generator
from zoomearth_jax.serving.images import Root
from zoomearth_jax.serving.metrics import Metrics
from zoomearth_jax.serving.prompts import ChatReader
from zoomearth_jax.serving.upload_parts import PartialUploads
from zoomearth_jax.serving.uploads import MB, Uploads
from zoomearth_jax.tools.image_tool import ImageTool
from zoomearth_jax.tools.tool import Tool

AGENT = "-agent"  # behind a model's name
_SWEEP_SECONDS = 30.0
_EXAMPLE_SIDE = 5_000  # px


@dataclasses.dataclass(frozen=True)
class ServiceSettings:
    """What a server is started with.

    Attributes:
        name: of the model; with `-agent` behind it, the model plays whole episodes.
        limits: how much clients may ask for.
        images: how files become 8-bit RGB.
        root: the folder whose images clients may name as `file:PATH`; None for none.
        api_key: what clients must send; empty for none.
        hosts: the names by which the server may be called; empty for any.
        tools: image tools that questions may offer to the model.
        tool_settings: how they run.
        examples: how many procedural scenes are offered.
    """

    name: str
    limits: ServerLimits = ServerLimits()
    images: ImageConfig = ImageConfig()
    root: Path | None = None
    api_key: str = dataclasses.field(default="", repr=False)
    hosts: tuple[str, ...] = ()
    tools: Mapping[str, ImageTool] = dataclasses.field(default_factory=dict)
    tool_settings: ToolsConfig = ToolsConfig()
    examples: int = 3


class Service:
    """A model with its uploads, limits and counters."""

    def __init__(self, settings: ServiceSettings, policy: LoadedPolicy, generator: Generator):
        """Makes the folder of the uploads; `close` removes it, and closes the generator.

        Args:
            generator: writes with the policy.
        """
        self.settings, self.generator, self.limits = settings, generator, settings.limits
        self.agent = Agent(generator)
        self._prompts, rows = ChatReader(policy, generator), generator.rows
        self.api_key, self.hosts = settings.api_key, settings.hosts
        self.root = None if settings.root is None else Root(settings.root)
        self.memory = Budget(
            self.limits.memory_mb * MB, "the server's memory is taken by other requests; try again later"
        )
        self._folder = tempfile.TemporaryDirectory(prefix="zoomearth-serve-")
        stores = StoreSettings(
            views=(rows.episode.view_px,),
            token_px=rows.layout.merged_px,
            bands=settings.images.bands,
            stretch=settings.images.stretch,
        )
        self.uploads = Uploads(Path(self._folder.name), self.limits, settings.images, stores)
        self.partial = PartialUploads(self.uploads)
        self.metrics = Metrics(generator, self.uploads, self.memory)
        self.draining, self.active, self._uploading = False, 0, 0
        self.created = int(time.time())
        self.examples = [self._example(number) for number in range(settings.examples)]

    def _example(self, number: int) -> dict:
        scene = random_scene(np.random.default_rng([number, 5]), _EXAMPLE_SIDE)
        question = site_question(scene, scene.sites[0]).text
        title = f"Scene {number + 1}: {len(scene.sites)} sites in {scene.season}"
        return {
            "file_id": self.uploads.add_drawn(f"example{number}", title, scene).id,
            "title": title,
            "question": question,
        }

    def begin_chat(
        self, messages: list[dict[str, Any]], variables: dict[str, Any], reply: ReplyConfig, choices: int
    ) -> list[Generation]:
        """Gives a conversation to the generator. Blocks while pictures are resized.

        Args:
            messages, variables: see `ChatReader.prompt`.

        Raises:
            UserError, Busy, Closed: see there, and `Generator.submit`.
        """
        segment = self._prompts.prompt(messages, variables)
        room = self.generator.config.slots - len(segment.ids)
        most = max(1, min(room, self.limits.tokens if reply.max_tokens is None else reply.max_tokens))
        return self.generator.submit(segment, dataclasses.replace(reply, max_tokens=most), choices=range(choices))

    def offered(self, names: Sequence[str], image: ImageSource, question: str) -> tuple[RowBuilder, Tool]:
        """Rows whose words offer the tools of these names, with room for the question, and what runs the tools."""
        from zoomearth_jax.tools.toolbox import Toolbox, rows_with_tools  # needs the extra `tools`

        tools = {name: self.settings.tools[name] for name in dict.fromkeys(names)}
        rows = rows_with_tools(self.generator.rows, tools).widened(
            [Question(image, question, answer="", level="global")]
        )
        return rows, Toolbox(rows, tools, self.settings.tool_settings)

    @contextlib.contextmanager
    def uploading(self) -> Iterator[None]:
        """Counts an upload while it is sent.

        Raises:
            APIError: 429, where too many are.
        """
        if self._uploading >= self.limits.uploads:
            raise busy(f"{self.limits.uploads} uploads are being sent already; try again later", 5, "too_many_uploads")
        self._uploading += 1
        try:
            yield
        finally:
            self._uploading -= 1

    async def sweep_forever(self) -> None:
        """Forgets what was not used for long, again and again."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.uploads.sweep()
            self.partial.sweep()

    def close(self) -> None:
        """Ends what is being written and built, and removes all files."""
        self.generator.close(drain=False)
        self.agent.close()
        self.uploads.close()
        self._folder.cleanup()
