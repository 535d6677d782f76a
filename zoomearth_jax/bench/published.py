"""`zoomearth bench plan --published`: what our estimator predicts for runs of MaxText on TPUs whose times are public."""

from __future__ import annotations

from typing import NamedTuple

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.hardware.chips import CHIPS
from zoomearth_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig
from zoomearth_jax.models.sharding import make_mesh
from zoomearth_jax.plan.cost import Network
from zoomearth_jax.plan.report import play
from zoomearth_jax.plan.steps import Training
from zoomearth_jax.terminal.progress import tracked
from zoomearth_jax.verbs.plan import topology_devices


class Run(NamedTuple):
    """A published training run: text alone, parameters and optimizer sharded over all chips, layers recomputed.

    Attributes:
        name: of the model.
        topology: of the TPUs.
        rows, length: sequences a chip and their tokens.
        seconds: a step, as published or as follows from the published MFU.
        text: the decoder.
    """

    name: str
    topology: str
    rows: int
    length: int
    seconds: float
    text: TextConfig


RUNS = (
    # MaxText's own 16B, 61.1 % MFU on v5e-256: 6 x 15.8e9 weights and full attention of 6 x 2,048 tokens in 10.3 s. Its heads are
    # 8,192 wide together, twice the width; ours are as wide as the model, so the other half of their weights is in the MLP
    # (28,672 -> 34,048).
    Run("MaxText 16B", "v5e:16x16", 6, 2048, 10.3, TextConfig(32000, 4096, 32, 32, 32, 34048, tie_embeddings=False)),
    # tpu-recipes: 3.393 s, 419.5 TFLOP/s a chip
    Run(
        "Llama-3.1-8B",
        "v6e:4x4",
        3,
        8192,
        3.393,
        TextConfig(128256, 4096, 32, 32, 8, 14336, tie_embeddings=False),
    ),
)


def published(runs: tuple[Run, ...] = RUNS) -> list[dict]:
    """Rows `model, topology, published_s, roofline_s, latency_s, by_cycles_s, roofline_ratio, by_cycles_ratio`; ratios are
    published / predicted.

    Raises:
        UserError: no libtpu.
    """
    return [_row(run) for run in tracked(runs, "compiling")]


def _row(run: Run) -> dict:
    devices = topology_devices(run.topology)
    training = _training(run.text, devices)
    program = training.text(run.rows * len(devices), run.length)
    network = Network(CHIPS[devices[0].device_kind], training.mesh.devices.flat)
    roofline, cycles = (play(program.compiled, training, network, by_cycles) for by_cycles in (False, True))
    return {
        "model": run.name,
        "topology": run.topology,
        "published_s": run.seconds,
        "roofline_s": roofline.seconds,
        "latency_s": roofline.latency,
        "by_cycles_s": cycles.seconds,
        "roofline_ratio": run.seconds / roofline.seconds,
        "by_cycles_ratio": run.seconds / cycles.seconds,
    }


def _training(text: TextConfig, devices) -> Training:
    """Fine-tuning of the decoder as ours does it, beside the smallest vision encoder there can be."""
    vision = VisionConfig(depth=1, width=64, num_heads=1, mlp_dim=64, out_dim=text.width, full_attention_blocks=())
    model = ModelConfig(vision, text, 0, 1, 2, 3, 4, 5)  # ids of some tokens: the published ones are beyond 32,000
    compute = ComputeConfig(dtype="bfloat16", remat="full")
    return Training(model, EpisodeConfig(), compute, make_mesh((1, len(devices), 1), devices))
