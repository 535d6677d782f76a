"""`zoomearth serve`: a model over HTTP, with OpenAI's chat completions, episodes played on the server, and a page."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import tyro

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.generation import GeneratorConfig
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.serving import ServerLimits
from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.data_pipeline.images.tiles import expanded
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.asking import load
from zoomearth_jax.tools.registry import find_tools

KEY_VARIABLE = "ZOOMEARTH_API_KEY"
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """A server for a model.

    Attributes:
        model: `nano-grpo`, a model directory, a run, or ORG/NAME of the Hugging Face hub.
        host: where it listens; 0.0.0.0 lets other machines in, and then needs an API key.
        port: 0 takes a free one.
        name: what clients call the model; the last part of `model` without it.
        root: a folder whose images clients may name as file:PATH, relative to it.
        api_key_file: a file with the key that clients must send; without it the environment's ZOOMEARTH_API_KEY, if there is one.
        allowed_hosts: names by which the server may be called; by default localhost's on localhost, and any elsewhere.
        drain_seconds: how long requests may go on after SIGTERM or Ctrl-C.
        tools: image tools that questions may offer to the model, see `zoomearth ask`; their words take some hundred slots of a row
            (`--generator.slots`).
        tool: time limits of tools, and what they use that isn't part of the package.
        examples: procedural scenes that the page offers; 0 for none.
        warm: compile all programs before the first request, which takes longer to start.
        limits: how much clients may ask for.
        generator: the rows that are written at the same time.
        images: how image files become 8-bit RGB (bands, stretch, limit of pixels of uploads).
        compute: number types and backends; `--compute.param-dtype bfloat16` halves a large model's memory.
        mesh: how the devices of one process share a model that one of them can't hold.
        layout: slots and views other than the model's own.
    """

    model: str = "nano-grpo"
    host: str = "127.0.0.1"
    port: int = 8000
    name: str = ""
    root: Path | None = None
    api_key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    tool: ToolsConfig = ToolsConfig()
    drain_seconds: float = 30.0
    examples: int = 3
    warm: bool = True
    limits: ServerLimits = ServerLimits()
    generator: GeneratorConfig = GeneratorConfig()
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    layout: LayoutConfig = LayoutConfig()

    def __post_init__(self):
        if not 0 <= self.port <= 65_535:
            raise UserError(f"--port {self.port}: must be between 0 and 65535")
        if not 0 <= self.drain_seconds < float("inf") or not 0 <= self.examples <= 100:
            raise UserError("serve: drain_seconds must not be negative, examples be 0 to 100")


def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"serve: {error.name} is missing; pip install 'zoomearth_jax[serve]'") from None
    from zoomearth_jax.serving.app import make_app
    from zoomearth_jax.serving.generation import Generator
    from zoomearth_jax.serving.server import bound, run
    from zoomearth_jax.serving.service import Service, ServiceSettings

    key, root, tools = _key(config), _root(config.root), find_tools(config.tools, config.tool)
    with bound(config.host, config.port) as listener:
        local = listener.getsockname()[0] in ("127.0.0.1", "::1")
        if not local and not key:
            raise UserError(
                f"--host {config.host}: other machines could use this server; give it a key ({KEY_VARIABLE} or --api-key-file)"
            )
        policy = load(config.model, compute=config.compute, mesh=config.mesh, layout=config.layout)
        generator = Generator(policy, config.generator, warm=config.warm)
        settings = ServiceSettings(
            name=config.name or Path(config.model).name or config.model,
            limits=config.limits,
            images=config.images,
            root=root,
            api_key=key,
            hosts=tuple(host.lower() for host in config.allowed_hosts) or (_LOOPBACK if local else ()),
            tools=tools,
            tool_settings=config.tool,
            examples=config.examples,
        )
        service = Service(settings, policy, generator)
        run(make_app(service), service, listener, config.drain_seconds)


def _key(config: ServeConfig) -> str:
    """The API key; empty without one.

    Raises:
        UserError: a file that can't be read, or a key that no header can hold.
    """
    if config.api_key_file is None:
        key, where = os.environ.get(KEY_VARIABLE, ""), KEY_VARIABLE
    else:
        file, where = expanded(config.api_key_file), str(config.api_key_file)
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: can't be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
        if not key:
            raise UserError(f"{file}: holds no key")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{where}: a key consists of printable ASCII characters without spaces")
    return key


def _root(folder: Path | None) -> Path | None:
    if folder is not None and not expanded(folder).is_dir():
        raise UserError(f"--root {folder}: no such folder")
    return None if folder is None else expanded(folder)
