"""`zoomearth bench rollout`: what shared prompts, continued caches and leaving out stopped rows save; they change nothing."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoomearth_jax.bench.grown import GROWN, write_grown
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.flops import RowCounts, forward_flops
from zoomearth_jax.rl.rollout.decoding import append_pictures, prefill, reread
from zoomearth_jax.rl.rollout.engine import RolloutEngine, Trajectories
from zoomearth_jax.runs.models import load_model

T1 = SamplingConfig(temperature=1.0)
SLOTS = 256  # of the long turn: as many as LRS-GRO's longest reasoning before a crop takes
MEAN_TOKENS = 75  # that rows write there
VISIT = 16


@dataclasses.dataclass(frozen=True)
class RolloutBenchConfig:
    """Savings of the rollout: prompts once per group, crops on the same cache, no work for rows that stopped.

    Attributes:
        models: which of nano and 100m (see bench grpo).
        prompts: questions. group: episodes of each.
        repeats: timings of each, of which the median counts.
        json: print JSON.
    """

    models: tuple[str, ...] = tuple(GROWN)
    prompts: int = 8
    group: int = 8
    repeats: int = 5
    json: bool = False

    def __post_init__(self):
        if unknown := set(self.models) - set(GROWN):
            raise UserError(f"bench rollout: unknown models {', '.join(sorted(unknown))}; known: {', '.join(GROWN)}")
        if min(self.prompts, self.group, self.repeats) < 1:
            raise UserError("bench rollout: prompts, group and repeats must be positive")


def bench_rollout(config: RolloutBenchConfig) -> list[dict]:
    """Rows `model, what, ours_s, plain_s, ratio`, with the GFLOP of both (by `flops.py`, of what exists), whether they sampled
    the same tokens from the same seeds, and the largest difference of a token's log-probability."""
    rows = []
    for name in config.models:
        with tempfile.TemporaryDirectory() as directory:
            write_grown(directory, GROWN[name])
            bench = _Bench(directory, config)
        rows += [{"model": name} | row for row in (bench.prompts(), bench.crops(), bench.stopped())]
    return rows


class _Bench:
    def __init__(self, directory: str, config: RolloutBenchConfig):
        model, self.rows = load_model(directory)
        self.config, self.model, self.group = config, model, config.group
        self.key = jax.random.key(0)  # not at import, which comes before processes join
        self.params, self.graph = nnx.state(model, nnx.Param), nnx.graphdef(model)
        self.engine = RolloutEngine(model, self.rows)
        self.questions = scene_questions("test", 0, 0, config.prompts, global_share=0.0)
        self.played = self.engine(self.params, self.questions, self.key, sampling=T1, group=self.group)
        self._prefill = jax.jit(self._prefill_of, static_argnames=("group", "slots"))

    def _prefill_of(self, params, *args, **settings):
        return prefill(nnx.merge(self.graph, params), *args, **settings)

    def _row(
        self, what: str, ours: Callable, plain: Callable, flops: tuple[float, float], same: tuple[bool, float]
    ) -> dict:
        seconds: dict[Callable, list[float]] = {ours: [], plain: []}
        for repeat in range(-1, self.config.repeats):  # the first compiles
            for run, times in seconds.items():
                began = time.perf_counter()
                jax.block_until_ready(run())
                if repeat >= 0:
                    times.append(time.perf_counter() - began)
        ours_s, plain_s = (statistics.median(times) for times in seconds.values())
        row = {"what": what, "ours_s": ours_s, "plain_s": plain_s, "ratio": plain_s / ours_s}
        row |= {"ours_gflop": flops[0] / 1e9, "plain_gflop": flops[1] / 1e9, "flop_ratio": flops[1] / flops[0]}
        return row | {"same_tokens": same[0], "logp_gap": same[1]}

    def _flops(self, tokens, past=0, overviews=(), crops=(), scored=0) -> float:
        """FLOPs of rows of so many tokens after so many others."""
        none = np.zeros((0, 2), int)
        grids = np.concatenate([none, *overviews]), np.concatenate([none, *crops])
        counts = RowCounts(
            np.broadcast_to(past, np.shape(tokens)), np.asarray(tokens), np.full(len(tokens), scored), *grids
        )
        whole, before = forward_flops(self.model.config, counts), counts._replace(reply_B=0 * counts.reply_B)
        empty = before._replace(scored_B=0 * counts.scored_B, overview_A2=none, picture_BI2=none)
        return sum(whole) - sum(forward_flops(self.model.config, empty))

    def prompts(self) -> dict:
        """Each prompt once, its cache repeated, against each once per sample."""
        group, prompts = self.group, self.played.prompts
        repeated = jax.tree.map(lambda x: np.repeat(x, group, axis=0), prompts)
        shared, single = (
            jax.device_put((p.ids, p.valid, self.model.config.prepare(*p.views))) for p in (prompts, repeated)
        )
        each = [q for q in self.questions for _ in range(group)]
        alone = self.engine(self.params, each, self.key, sampling=T1)
        tokens, grids = prompts.valid.sum(1), prompts.views.grids
        once = self._flops(tokens, overviews=[grids])
        slots = self.rows.layout.turn_lens[0]
        return self._row(
            "prompts once a group",
            lambda: self._prefill(self.params, *shared, group=group, slots=slots),
            lambda: self._prefill(self.params, *single, group=1, slots=slots),
            (once, once * group),
            _same(self.played, alone),
        )

    def crops(self) -> dict:
        """Crops on the caches of the first turn, against the whole row computed anew for the second."""
        engine, rows, layout, played = self.engine, self.rows, self.rows.layout, self.played
        group, replies = self.group, played.replies
        sizes, first, (length, after_len) = self.model.config, layout.turn(0), layout.turn_lens
        look = engine.send(played.prompts)
        keys = jax.random.split(self.key, len(replies.ids))
        how: dict[str, Any] = {"temperature": 1.0, "filters": T1.filters}
        programs, weights = engine.programs, engine.weights(self.params)
        _, ready = programs.prefill(weights.reading, *look.on_devices, group=group, filters=T1.filters)
        cache, writing = programs.start(weights, ready, None, keys, length=length, **how)
        written = rows.replies([[ids] for ids in _ids(writing)], rows.views([None] * len(replies.ids)))
        own = jax.device_put((written.ids[:, first], written.valid[:, first]))
        repeated = jax.tree.map(lambda x: np.repeat(x, group, axis=0), played.prompts)
        ids, valid, views = jax.device_put((repeated.ids, repeated.valid, sizes.prepare(*repeated.views)))
        crop: tuple[Any, Any, Any] = *rows.picture_slots(replies.pictures.grids), sizes.prepare(*replies.pictures)
        active = replies.pictures.grids.prod(-1) > 0
        crop = jax.device_put(crop)

        @jax.jit
        def after(params, cache, writing):
            return append_pictures(nnx.merge(self.graph, params), cache, *crop, writing.position_B, after_len)[1:]

        @jax.jit
        def anew(params, writing):
            model = nnx.merge(self.graph, params)
            _, _, cache, _ = prefill(model, ids, valid, views, group=1, slots=length)
            cache, next_B = reread(model, cache, writing, *own)
            return cache, append_pictures(model, cache, *crop, next_B, after_len)[1:]

        stopped = writing._replace(alive_B=jnp.zeros_like(writing.alive_B))

        def zoomed(cache, next_B):
            _, ready = programs.append(weights.reading, cache, next_B, None, *crop, length=after_len)
            return programs.start(weights, ready, active, keys, length=after_len, **how)[1]

        again = programs.reread(weights.reading, anew(self.params, writing)[0], stopped, *own)
        kept = jax.tree.map(jnp.copy, cache)  # the program takes it over
        zoom = [zoomed(*programs.close(weights.writing, kept, writing)), zoomed(*again)]
        tokens = np.where(active, replies.pictures.grids.prod(-1) + 2, 0)
        before = np.repeat(played.prompts.valid.sum(1), group) + written.valid[:, first].sum(1)
        grids, overviews = replies.pictures.grids, np.repeat(played.prompts.views.grids, group, axis=0)
        flops = self._flops(tokens, before, crops=[grids]), self._flops(before + tokens, crops=[grids, overviews])
        same = (np.asarray(zoom[0].ids_BT) == np.asarray(zoom[1].ids_BT))[active]
        gap = np.abs(np.asarray(zoom[0].logps_BT) - np.asarray(zoom[1].logps_BT))[active][same]
        return self._row(
            "crops on the same cache",
            lambda: after(self.params, cache, writing),
            lambda: anew(self.params, writing),
            flops,
            (bool(same.all()), float(gap.max())),
        )

    def stopped(self) -> dict:
        """A long turn whose rows stop anywhere, with and without those that have stopped."""
        vocabulary = len(self.rows.tokenizer)
        ends = range(vocabulary - vocabulary // MEAN_TOKENS, vocabulary)  # drawn about once in MEAN_TOKENS tokens
        episode = dataclasses.replace(self.rows.episode, turn_lens=(SLOTS, *self.rows.episode.turn_lens[1:]))
        rows = RowBuilder(self.rows.tokenizer, episode, self.rows.layout.merged_px, {"eos_token_id": list(ends)})
        params = jax.tree.map(lambda x: x * 0 if x.ndim > 1 else x, self.params)  # every token is as likely
        engines = [RolloutEngine(self.model, rows, config=RolloutConfig(visit=visit)) for visit in (VISIT, SLOTS)]

        def play(engine):
            return engine(params, self.questions, self.key, sampling=T1, group=self.group)

        left_out, whole = map(play, engines)
        lengths = whole.replies.target.sum(axis=1)
        row = self._row(
            "stopped rows left out",
            lambda: play(engines[0]).logprobs,
            lambda: play(engines[1]).logprobs,
            (1.0, 1.0),
            _same(left_out, whole),
        )
        row |= {"mean_tokens": float(lengths.mean()), "max_tokens": int(lengths.max())}
        return {name: value for name, value in row.items() if "flop" not in name}


def _same(a: Trajectories, b: Trajectories) -> tuple[bool, float]:
    """Whether the same tokens were sampled, and the largest difference of a log-probability where they were."""
    same = a.replies.ids == b.replies.ids
    rows = same.all(axis=1)
    return bool(same.all()), float(np.abs(a.logprobs - b.logprobs)[rows].max())


def _ids(writing) -> list[list[int]]:
    return [
        ids[written].tolist()
        for ids, written in zip(np.asarray(writing.ids_BT), np.asarray(writing.written_BT), strict=True)
    ]
