"""`zoomearth bench NAME`: prints the figures that the documents state, measured anew on this machine."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, Union

import tyro

from zoomearth_jax.bench.device import DeviceConfig, bench_device
from zoomearth_jax.bench.evaluate import EvaluateBenchConfig, bench_evaluate
from zoomearth_jax.bench.full_size import FullSizeConfig, bench_full_size
from zoomearth_jax.bench.generation import GenerationBenchConfig, bench_generation
from zoomearth_jax.bench.grpo import GRPOBenchConfig, bench_grpo
from zoomearth_jax.bench.loader import LoaderConfig, bench_loader
from zoomearth_jax.bench.looks import LooksConfig, bench_looks
from zoomearth_jax.bench.memory import MemoryConfig, bench_memory
from zoomearth_jax.bench.packing import PackingConfig, bench_packing
from zoomearth_jax.bench.peers import PeersConfig, bench_peers
from zoomearth_jax.bench.perception import PerceptionConfig, bench_perception
from zoomearth_jax.bench.pixels import PixelsConfig, bench_pixels
from zoomearth_jax.bench.plan import PlanBenchConfig, bench_plan
from zoomearth_jax.bench.refill import RefillConfig, bench_refill
from zoomearth_jax.bench.resume import ResumeConfig, bench_resume
from zoomearth_jax.bench.rewards import RewardsConfig, bench_rewards
from zoomearth_jax.bench.rollout import RolloutBenchConfig, bench_rollout
from zoomearth_jax.bench.scan import ScanBenchConfig, bench_scan
from zoomearth_jax.bench.serve import ServeBenchConfig, bench_serve
from zoomearth_jax.bench.tiles import TilesConfig, bench_tiles
from zoomearth_jax.bench.tools import ToolsBenchConfig, bench_tools
from zoomearth_jax.bench.windows import WindowsConfig, bench_windows
from zoomearth_jax.hardware.surroundings import surroundings
from zoomearth_jax.terminal.tables import table

# name -> (settings with a field `json`, function from them to rows)
BENCHMARKS: dict[str, tuple[type, Callable]] = {
    "device": (DeviceConfig, bench_device),
    "evaluate": (EvaluateBenchConfig, bench_evaluate),
    "full-size": (FullSizeConfig, bench_full_size),
    "generation": (GenerationBenchConfig, bench_generation),
    "grpo": (GRPOBenchConfig, bench_grpo),
    "loader": (LoaderConfig, bench_loader),
    "looks": (LooksConfig, bench_looks),
    "memory": (MemoryConfig, bench_memory),
    "packing": (PackingConfig, bench_packing),
    "peers": (PeersConfig, bench_peers),
    "perception": (PerceptionConfig, bench_perception),
    "pixels": (PixelsConfig, bench_pixels),
    "plan": (PlanBenchConfig, bench_plan),
    "refill": (RefillConfig, bench_refill),
    "resume": (ResumeConfig, bench_resume),
    "rewards": (RewardsConfig, bench_rewards),
    "rollout": (RolloutBenchConfig, bench_rollout),
    "serve": (ServeBenchConfig, bench_serve),
    "scan": (ScanBenchConfig, bench_scan),
    "tiles": (TilesConfig, bench_tiles),
    "tools": (ToolsBenchConfig, bench_tools),
    "windows": (WindowsConfig, bench_windows),
}
_Settings: Any = Union[*(Annotated[kind, tyro.conf.subcommand(name)] for name, (kind, _) in BENCHMARKS.items())]


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Settings of a benchmark.

    Attributes:
        benchmark: which one, with its own settings.
    """

    benchmark: _Settings


def bench(config: BenchConfig) -> list[dict]:
    """Runs a benchmark, prints its rows and returns them."""
    settings = config.benchmark
    rows = next(function for kind, function in BENCHMARKS.values() if isinstance(settings, kind))(settings)
    print(json.dumps(rows, indent=2) if settings.json else table(rows))
    print(surroundings(), file=sys.stderr)
    return rows
