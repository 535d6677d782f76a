"""`zoomearth bench perception`: what it costs to see an image, by its side: two looks, passive views, pruned views."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from zoomearth_jax.configs.episode import RowLayout, rounded
from zoomearth_jax.configs.prune import PruneConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.procedural import site_question
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.questions.scenes import random_scene
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.evaluation.baselines import CROPS
from zoomearth_jax.files import write_file
from zoomearth_jax.hardware.chips import CHIPS, Chip
from zoomearth_jax.hardware.flops import forward_flops, full_counts
from zoomearth_jax.models.families import abstract_model
from zoomearth_jax.models.presets import preset
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.rl.rollout.sampling import row_keys
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.terminal.progress import tracked

UNIT = 28  # px of a visual token, of the nano model and of the 3B
LOOK_PX = 512  # of an overview and of a crop
POLICY, PLANNED = "nano-grpo", "qwen2_5_vl_3b"
GREEDY = SamplingConfig(temperature=0.0)


@dataclasses.dataclass(frozen=True)
class PerceptionConfig:
    """Visual tokens, FLOPs, memory and seconds of one question, against the side of its image.

    Attributes:
        sides: px of the square scenes.
        views: longest sides in px of passive views; those at full resolution come beside them.
        pruned: longest side in px of the passive view that is pruned. keep: see `PruneConfig`.
        measure_px: larger views are computed, not measured.
        tokens: slots of each turn.
        repeats: timings, of which the median counts.
        chip: whose roofline is computed, such as v5e or h100.
        plot: file for an SVG of seconds and visual tokens against sides.
        json: print JSON.
    """

    sides: tuple[int, ...] = (1000, 2000, 5000, 10_000, 20_000)
    views: tuple[int, ...] = (1024, 2048, 3333)
    pruned: int = 1024
    keep: float = 0.25
    measure_px: int = 1024
    tokens: int = 16
    repeats: int = 3
    chip: str = "v5e"
    plot: Path | None = None
    json: bool = False

    def __post_init__(self):
        if not self.sides or min(*self.sides, *self.views, self.pruned) < 56 or min(self.tokens, self.repeats) < 1:
            raise UserError("bench perception: sides and views are 56 px or more, tokens and repeats positive")
        names = {known.name for known in CHIPS.values()}
        if self.chip not in names:
            raise UserError(f"bench perception: unknown chip {self.chip!r}; {suggestion(self.chip, sorted(names))}")


@dataclasses.dataclass(frozen=True)
class _Way:
    """A way of seeing: its name, the most px of its view (0: full resolution), turns, and what is pruned."""

    name: str
    view_px: int
    turns: int = 1
    prune: PruneConfig = PruneConfig()

    def seen(self, side: int) -> int:
        """Side in px of the view of an image of that side, whole visual tokens."""
        return rounded(min(side, self.view_px or side), UNIT)

    def rows(self, plain: RowBuilder, side: int, tokens: int) -> RowBuilder:
        """Rows whose slots are filled by a square image of that side."""
        view = self.seen(side)
        text = len(plain.prompt_ids(_question(side).asked, 1)) - 1
        whole = plain.replaced(
            view_px=view,
            picture_px=min(view, rounded(LOOK_PX, UNIT)),
            min_window_px=LOOK_PX,
            turn_lens=(tokens,) * self.turns,
            prompt_len=(view // UNIT) ** 2 + text,
        )
        return whole.pruned(self.prune)


def bench_perception(config: PerceptionConfig) -> list[dict]:
    """Rows `side_px, way, view_px, visual_tokens`; of the nano model with real views `gflop`, and where it was measured `peak_gb`
    and `seconds`; of the 3B, computed, `3b_tflop`, `3b_gb` and `3b_seconds` on a chip, and whether it `fits`.

    FLOPs are those of `hardware/flops.py`: choosing which tokens to prune is left out of them, but is in the seconds. Memory of
    the nano model is what the compiler allots to the largest program of a question. See `_Planned` for the 3B's.
    """
    ways = [_Way("two looks", LOOK_PX, turns=2)]
    ways += [_Way(f"passive {px:,} px", px) for px in config.views] + [_Way("passive, full resolution", 0)]
    ways += [
        _Way(f"{config.pruned:,} px, {config.keep:g} kept by {kind}", config.pruned, 1, PruneConfig(kind, config.keep))
        for kind in ("attention", "cluster")
    ]
    bench, planned = _Bench(config), _Planned(next(c for c in CHIPS.values() if c.name == config.chip))
    table = []
    for side in tracked(config.sides, "sides"):
        for way in ways:
            rows = way.rows(bench.rows, side, config.tokens)
            layout, counts = rows.layout, full_counts(rows.layout, 1)
            visual = layout.view_tokens + layout.num_pictures * layout.picture_tokens
            row = {"side_px": side, "way": way.name, "view_px": way.seen(side), "visual_tokens": visual}
            row["gflop"] = sum(forward_flops(bench.model.config, counts)) / 1e9
            row |= bench.measured(side, rows) | planned.row(rows)
            table.append(row)
    if config.plot:
        write_file(config.plot, picture(table))
    return table


def _question(side: int) -> Question:
    scene = random_scene(np.random.default_rng(0), side)
    return site_question(scene, scene.sites[0])


class _Bench:
    """Measures the shipped nano policy on real views; a view that was measured once isn't again."""

    def __init__(self, config: PerceptionConfig):
        self.model, self.rows = load_model(POLICY)
        self.config, self.params = config, nnx.state(self.model, nnx.Param)
        self._known: dict[RowLayout, dict] = {}

    def measured(self, side: int, rows: RowBuilder) -> dict:
        """Peak memory and median seconds of one question, the reading of its windows included."""
        layout = rows.layout
        if layout.view_side > self.config.measure_px:
            return {}
        if layout not in self._known:
            self._known[layout] = self._measure(_question(side), rows)
        return self._known[layout]

    def _measure(self, question: Question, rows: RowBuilder) -> dict:
        engine, key = RolloutEngine(self.model, rows), jax.random.key(0)
        tool, seconds = CROPS["oracle"](engine.tool, rows), []  # a second look, whatever the first one says
        for _ in range(self.config.repeats + 1):  # the first compiles
            began = time.perf_counter()
            played = engine(self.params, [question], key, sampling=GREEDY, tool=tool)
            seconds.append(time.perf_counter() - began)
        assert len(played.episodes[0].turns) == rows.layout.num_turns
        return {"peak_gb": self._peak_bytes(engine, question) / 1e9, "seconds": statistics.median(seconds[1:])}

    def _peak_bytes(self, engine: RolloutEngine, question: Question) -> int:
        """What the compiler allots to the largest program, its arguments and results."""
        layout, look, programs = engine.rows.layout, engine.look([question]), engine.programs
        keys = row_keys(jax.random.key(0), np.zeros(1, np.uint32), turns=layout.num_turns)
        filters = GREEDY.filters
        read = partial(programs.prefill, group=1, filters=filters)
        compiled = [programs.prefill.lower(self.params, *look.on_devices, group=1, filters=filters).compile()]
        ready = jax.eval_shape(read, self.params, *look.on_devices)[1]
        for k, length in enumerate(layout.turn_lens):
            start = partial(programs.begin, length=length, filters=filters)
            writing = jax.eval_shape(start, self.params, ready, None, keys[k], 0.0)
            compiled.append(programs.go_on.lower(self.params, ready.cache, writing, 0.0, filters=filters).compile())
            if k < layout.num_pictures:
                views = engine.rows.views([None], layout.picture_side)
                shown = *engine.rows.picture_slots(views.grids), self.model.config.prepare(*views)
                args = self.params, ready.cache, writing.start_B, None, *shown
                compiled.append(programs.append.lower(*args, length=layout.turn_lens[k + 1]).compile())
                append = partial(programs.append, length=layout.turn_lens[k + 1])
                ready = jax.eval_shape(append, *args)[1]
        return max(map(_allotted, compiled))


def _allotted(compiled) -> int:
    found = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return held + found.temp_size_in_bytes


class _Planned:
    """The 3B on one chip, computed from its sizes, in bfloat16, a question at a time.

    Seconds are a roofline: all FLOPs of prompts and pictures at the chip's peak, and for each token that is written one reading of
    the decoder's weights and of the cache. Memory is the least there must be: weights, cache, and the larger of the vision
    encoder's and the decoder's widest activations (gate and up projections). Both are lower bounds; `zoomearth plan` compiles.
    """

    def __init__(self, chip: Chip):
        self.chip, self.sizes = chip, preset(PLANNED)[0]
        state = nnx.state(abstract_model(self.sizes), nnx.Param)
        self.weights, self.decoder = (2 * _size(part) for part in (state, state["decoder"]))

    def row(self, rows: RowBuilder) -> dict:
        """Of a question that fills these rows."""
        layout, sizes = rows.layout, self.sizes
        flops = sum(forward_flops(sizes, full_counts(layout, 1)))
        slots = layout.prompt_len + layout.reply_len
        cache = 4 * math.prod(sizes.cache_shape(1, slots))
        patches = (layout.view_side // sizes.vision.patch_size) ** 2
        wide = max(patches * sizes.vision.mlp_dim, layout.prompt_len * sizes.text.mlp_dim) * 2 * 2
        seconds = flops / self.chip.peak_flops
        seconds += layout.written_len * (self.decoder + cache) / self.chip.hbm_bandwidth
        held = self.weights + cache + wide
        fits = "yes" if held <= self.chip.hbm_bytes else "NO"
        return {"3b_tflop": flops / 1e12, "3b_gb": held / 1e9, "3b_seconds": seconds, f"fits {self.chip.name}": fits}


def _size(state) -> int:
    return sum(x.size for x in jax.tree.leaves(state))


WIDTH, HEIGHT, LEFT, TOP = 420, 280, 60, 30
COLORS = ("#0b6", "#69c", "#36a", "#036", "#a50", "#c3c", "#e84")


def picture(rows: list[dict]) -> str:
    """An SVG of two panels, both axes logarithmic: visual tokens, and the 3B's computed seconds, against the image's side."""
    panels = [("visual_tokens", "visual tokens"), ("3b_seconds", "3B, computed seconds per question")]
    ways = list(dict.fromkeys(row["way"] for row in rows))
    full = 2 * (WIDTH + LEFT), HEIGHT + 2 * TOP + 18 * len(ways) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full[0]} {full[1]}" font-family="sans-serif" font-size="12">'
    ]
    for number, (key, title) in enumerate(panels):
        left = LEFT + number * (WIDTH + LEFT)
        x, y = (_axis([row[name] for row in rows]) for name in ("side_px", key))
        parts.append(f'<text x="{left}" y="18" font-weight="bold">{title}</text>')
        parts.append(f'<rect x="{left}" y="{TOP}" width="{WIDTH - 20}" height="{HEIGHT}" fill="none" stroke="#999"/>')
        for side in dict.fromkeys(row["side_px"] for row in rows):
            parts.append(
                f'<text x="{left + x(side) * (WIDTH - 20):.0f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{side:,}</text>'
            )
        values = [row[key] for row in rows]
        for value in (min(values), max(values)):
            place = TOP + HEIGHT * (1 - y(value)) + 4
            parts.append(f'<text x="{left - 4}" y="{place:.0f}" text-anchor="end">{value:,.3g}</text>')
        for way, color in zip(ways, COLORS * len(ways), strict=False):
            own = [(row["side_px"], row[key]) for row in rows if row["way"] == way]
            points = " ".join(
                f"{left + x(a) * (WIDTH - 20):.1f},{TOP + HEIGHT * (1 - y(b)):.1f}" for a, b in sorted(own)
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
    for number, (way, color) in enumerate(zip(ways, COLORS * len(ways), strict=False)):
        place = HEIGHT + 2 * TOP + 18 * (number + 1)
        parts.append(f'<rect x="{LEFT}" y="{place - 9}" width="20" height="4" fill="{color}"/>')
        parts.append(f'<text x="{LEFT + 28}" y="{place}">{way}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _axis(values: list[float]) -> Callable[[float], float]:
    """Places 0.03 to 0.97 of values on a logarithmic axis."""
    low, high = math.log(min(values)), math.log(max(values))
    span: Any = high - low or 1.0
    return lambda value: 0.03 + 0.94 * (math.log(value) - low) / span
