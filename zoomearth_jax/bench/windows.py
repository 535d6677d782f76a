"""`zoomearth bench windows`: attention of a vision block in windows and over the whole image, by the number of patches."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoomearth_jax.bench.timing import median_seconds
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.qwen2_5_vl.patches import vision_layout
from zoomearth_jax.models.qwen2_5_vl.vision import VisionBlock
from zoomearth_jax.models.rope import vision_angles


@dataclasses.dataclass(frozen=True)
class WindowsConfig:
    """Attention of a vision block in windows and over the whole image, by the number of patches.

    Attributes:
        preset: model size whose vision encoder is timed.
        sides: patches along the side of the square image.
        repeats: timings of each, of which the median counts.
        compute: number types and backends.
        json: print JSON.
    """

    preset: str = "qwen2_5_vl_3b"
    sides: tuple[int, ...] = (16, 32, 64)
    repeats: int = 5
    compute: ComputeConfig = ComputeConfig()
    json: bool = False

    def __post_init__(self):
        if self.repeats < 1 or not self.sides or min(self.sides) < 2 or any(side % 2 for side in self.sides):
            raise UserError("bench windows: sides must be even and positive, repeats positive")


def bench_windows(config: WindowsConfig) -> list[dict]:
    """Rows `patches, windows_s, whole_s`: seconds of one block's attention, projections included."""
    vision = preset(config.preset)[0].vision
    graph, params = nnx.split(VisionBlock(vision, compute=config.compute, rngs=nnx.Rngs(0)))
    attend = jax.jit(lambda params, *inputs: nnx.merge(graph, params).attend(*inputs), static_argnums=4)
    rows = []
    for side in config.sides:
        layout = vision_layout(np.array([[side, side]]), vision)
        x_IPD = jnp.ones((1, side * side, vision.width), config.compute.dtype)
        angles = vision_angles(layout.positions_IP2, vision.width // vision.num_heads)
        seconds = {
            name: median_seconds(lambda: attend(params, x_IPD, angles, layout, whole), config.repeats)  # noqa: B023
            for name, whole in (("windows_s", False), ("whole_s", True))
        }
        rows.append({"patches": side * side, **seconds})
    return rows
