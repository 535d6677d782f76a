"""`zoomearth bench looks`: what one look more costs, in FLOPs and milliseconds, and that no number of looks compiles anew."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time

import jax
import numpy as np

from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.plan import FillConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.flops import RowCounts, grpo_flops, rollout_flops, row_counts
from zoomearth_jax.models.presets import preset
from zoomearth_jax.rl.grpo import GRPO, Asked
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.runs.start import on_mesh
from zoomearth_jax.tools.tool import Request, View


@dataclasses.dataclass(frozen=True)
class LooksConfig:
    """A GRPO iteration of episodes that all look 1, 2, 3 … times (nano), and the FLOPs of a look of the 3B.

    Attributes:
        most: the most looks that are tried.
        prompts: questions of an iteration. group: episodes of each.
        repeats: iterations of each number of looks, of which the median counts.
        json: print JSON.
    """

    most: int = 3
    prompts: int = 16
    group: int = 8
    repeats: int = 7
    json: bool = False

    def __post_init__(self):
        if min(self.most, self.prompts, self.repeats) < 1 or self.group < 2:
            raise UserError("bench looks: most, prompts and repeats must be positive, group at least 2")


class Always:
    """Shows a part of the image after every turn, whatever was written; which one follows from the row and the turn."""

    def __init__(self, rows: RowBuilder):
        self._rows = rows

    def request(self, text: str, view: View) -> Request:
        """See `Tool`."""
        frame = view.question.image.frame
        x, y = np.random.default_rng([view.seed, len(view.earlier)]).uniform(0, 0.8, 2)
        box = Box(x * frame.width, y * frame.height, (x + 0.1) * frame.width, (y + 0.1) * frame.height, frame)
        return Request(True, box.to(view.frame), self._rows.window(box, frame))

    def run(self, image: ImageSource, request: Request) -> np.ndarray:
        """See `Tool`."""
        assert request.window is not None
        return self._rows.crop(image, request.window)


def bench_looks(config: LooksConfig) -> list[dict]:
    """Rows by number of looks: seconds of a rollout and of its update, GFLOP of both, what one look more takes of each an episode,
    programs that were compiled after the warm-up, and the TFLOP of one look more of the 3B by LRS-GRO's tokens."""
    rows: list[dict] = []
    with on_mesh(MeshConfig(), "nano-grpo", processes=False) as mesh:
        for looks in range(config.most + 1):
            rows.append(_measured(config, looks, mesh))
    episodes = config.prompts * config.group
    for before, row in itertools.pairwise(rows):
        seconds = sum(row[name] - before[name] for name in ("rollout_s", "update_s"))
        row |= {
            "ms_a_look": 1e3 * seconds / episodes,
            "mflop_a_look": 1e3 * (row["gflop"] - before["gflop"]) / episodes,
        }
        row["3b_tflop_a_look"] = (_flops_3b(row["looks"]) - _flops_3b(before["looks"])) / 1e12
    return rows


def _measured(config: LooksConfig, looks: int, mesh) -> dict:
    settings = GRPOConfig(
        model="nano-grpo", prompts=config.prompts, group=config.group, objective=ObjectiveConfig(kl_weight=0.0)
    )
    model, rows = load_model(settings.model, mesh=mesh)
    first, *_, last = rows.episode.turn_lens
    rows = rows.replaced(turn_lens=(*[first] * looks, last))
    training = GRPO(settings, model, rows, mesh)
    training.engine.tool = Always(rows)
    times: dict[str, list[float]] = {"rollout_s": [], "update_s": []}
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for repeat in range(-2, config.repeats):  # the first two compile
            if repeat == 0:
                compiled.clear()
            questions = scene_questions("grpo", 0, (repeat + 2) * config.prompts, config.prompts, global_share=0.25)
            began = time.perf_counter()
            played = training.play(Asked(questions, training.send(rows.prompts(questions)), repeat + 2))
            jax.block_until_ready(played.rows)
            turned = time.perf_counter()
            training.update(played)[0].metrics()
            if repeat >= 0:
                times["rollout_s"].append(turned - began)
                times["update_s"].append(time.perf_counter() - turned)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    counts = row_counts(played.episodes.prompts, played.episodes.replies)
    flops = rollout_flops(model.config, counts) + grpo_flops(model.config, counts, freeze_vision=True, kl=False)
    median = {name: statistics.median(x) for name, x in times.items()}
    return {"looks": looks, **median, "gflop": flops / 1e9, "compiled": len(compiled)}


def _flops_3b(looks: int) -> float:
    """FLOPs of an episode of the 3B with so many looks, its rollout and update, by the tokens that LRS-GRO's rows have."""
    (sizes, episode), fill = preset("qwen2_5_vl_3b"), FillConfig()
    layout = episode.layout(sizes.merged_px)
    side = layout.view_side // layout.merged_px
    written = fill.look * looks + (fill.answer if looks else fill.alone)
    counts = RowCounts(
        np.array([fill.prompt]),
        np.array([written + looks * layout.picture_len]),
        np.array([written + looks + 1]),
        np.full((1, 2), side),
        np.full((1, looks, 2), side),
    )
    return rollout_flops(sizes, counts) + grpo_flops(sizes, counts, freeze_vision=True, kl=False)
