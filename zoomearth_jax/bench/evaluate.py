"""`zoomearth bench evaluate`: episodes per second of the evaluation's runner, against one by one with re-prefill.

One by one is how the models' own scripts evaluate: a question at a time, a call of the model for each token, and after the first
turn a new request with the prompt, that turn and the crop, all of which is computed again. It is timed with compiled programs of
the same model, and where torch is installed with HF's `generate`, as the released code evaluates.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.data_pipeline.questions.mixture import SCENES
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.protocol import parse_answer
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.benchmarks.questions import Questions
from zoomearth_jax.evaluation.record_store import RecordStore
from zoomearth_jax.evaluation.records import Item, Record
from zoomearth_jax.evaluation.runner import Runner
from zoomearth_jax.models.attention import KVCache
from zoomearth_jax.models.family import Images
from zoomearth_jax.rl.rollout.decoding import Ready, Sampler, Writing, append_pictures, prefill, reread
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model, save_model
from zoomearth_jax.tools.tool import Request, View, as_shown


@dataclasses.dataclass(frozen=True)
class EvaluateBenchConfig:
    """Episodes per second of an evaluation, against one by one with the second turn computed anew.

    Attributes:
        model: as `load_model` takes it; one of two turns.
        episodes: procedural questions that the runner plays.
        one_by_one: the first so many of them are played one by one; the ratio is that of episodes per second.
        batch_size: questions that the runner plays at once.
        repeats: turns of both, of which the medians count.
        json: print JSON.
    """

    model: str = "nano-grpo"
    episodes: int = 2000
    one_by_one: int = 200
    batch_size: int = 256
    repeats: int = 3
    json: bool = False

    def __post_init__(self):
        if min(self.episodes, self.one_by_one, self.batch_size, self.repeats) < 1 or self.one_by_one > self.episodes:
            raise UserError("bench evaluate: all counts must be positive, and one_by_one at most episodes")


def bench_evaluate(config: EvaluateBenchConfig) -> list[dict]:
    """One row: `episodes, one_by_one, episodes_per_s, one_by_one_per_s, ratio`, and `same_answers`, a share of `one_by_one`.

    `one_loop_per_s` and `one_loop_ratio` are of one by one with each turn in one compiled loop, `hf_per_s` and `hf_ratio` of HF's
    `generate` in torch, which samples at T = 1. The runner's time holds reading the images, and records and thumbnails on the
    disk; that of one by one reading the images only.
    """
    model, rows = load_model(config.model)
    if rows.layout.num_turns != 2:
        raise UserError(
            f"bench evaluate: {config.model} plays {rows.layout.num_turns} turns; take a model that plays two"
        )
    items = Questions(count=config.episodes).open(Path(SCENES), None, ImageConfig()).items
    engine, params = RolloutEngine(model, rows), nnx.state(model, nnx.Param)
    slow = {"one_by_one": _OneByOne(model, engine, params, 1), "one_loop": _OneByOne(model, engine, params)}
    few = [item.question for item in items[: config.one_by_one]]
    _run(engine, params, items[: config.batch_size], config.batch_size)  # compiles
    answers = {name: way.play(few) for name, way in slow.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ("episodes", *slow)}
    for _ in range(config.repeats):
        began = time.perf_counter()
        records = _run(engine, params, items, config.batch_size)
        seconds["episodes"].append((time.perf_counter() - began) / len(items))
        for name, way in slow.items():
            began = time.perf_counter()
            way.play(few)
            seconds[name].append((time.perf_counter() - began) / len(few))
    if find_spec("torch") is not None:
        seconds["hf"] = _hf_seconds(config, rows, few)
    per_s = {name: 1 / statistics.median(times) for name, times in seconds.items()}
    same = [record.answer == answer for way in answers.values() for record, answer in zip(records, way, strict=False)]
    settings = {key: getattr(config, key) for key in ("model", "episodes", "one_by_one", "batch_size")}
    ratios = {name: per_s["episodes"] / rate for name, rate in per_s.items() if name != "episodes"}
    rates = {f"{name}_per_s": rate for name, rate in per_s.items()}
    rates |= {"ratio": ratios["one_by_one"]} | {
        f"{name}_ratio": ratio for name, ratio in ratios.items() if name != "one_by_one"
    }
    return [settings | rates | {"same_answers": float(np.mean(same))}]


def _hf_seconds(config: EvaluateBenchConfig, rows: RowBuilder, questions: Sequence[Question]) -> list[float]:
    """Seconds per question, by HF's `generate` with one question at a time."""
    from zoomearth_jax.bench.torch_grpo import TorchGRPO

    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), *load_model(config.model), "float32")
        theirs = TorchGRPO(folder, rows, 1, ObjectiveConfig(), RewardSpec(), 0.0).as_variant("released")
    seconds = []
    for _ in range(config.repeats + 1):  # the first warms up
        began = time.perf_counter()
        for seed, question in enumerate(questions):
            theirs.play([question], seed)
        seconds.append((time.perf_counter() - began) / len(questions))
    return seconds[1:]


def _run(engine: RolloutEngine, params, items: Sequence[Item], batch_size: int) -> list[Record]:
    """Plays all items as `zoomearth evaluate` does, into a folder that is then removed."""
    with tempfile.TemporaryDirectory() as folder:
        store = RecordStore(Path(folder), items, Questions.name, "")
        store.begin(overwrite=False)
        runner = Runner(engine, params, Questions.name, items, range(len(items)), batch_size=batch_size)
        return runner.run("shown", store, Path(folder))


class _Segment(NamedTuple):
    """A stretch of one row with a picture: ids and validity [1, T], and the picture."""

    ids: Any
    valid: Any
    images: Images


class _OneByOne:
    """Plays a question at a time, greedily; the second turn begins with prompt, first turn and crop computed anew."""

    def __init__(self, model, engine: RolloutEngine, params, tokens: int = 0):
        """Takes the model with its engine and parameters.

        Args:
            tokens: so many per call; 0 for the whole turn.
        """
        self._tokens = tokens or max(engine.rows.layout.turn_lens)
        self._engine, self._graph, self._weights = engine, nnx.graphdef(model), engine.weights(params).reading
        self._sizes, self._sampler = model.config, Sampler(engine.rows.tokens, 0.0)
        self._first, self._second = jax.jit(self._first_turn), jax.jit(self._second_turn)
        self._more = jax.jit(self._go_on, donate_argnames="cache")
        self._keys = jax.random.split(jax.random.key(0), 1)  # nothing is drawn

    def _first_turn(self, weights, prompt: _Segment) -> tuple[KVCache, Writing]:
        model, length = nnx.merge(self._graph, weights), self._engine.rows.layout.turn_lens[0]
        _, hidden, cache, start = prefill(model, prompt.ids, prompt.valid, prompt.images, 1, length)
        return self._write(model, Ready(hidden, cache, 0, start), length)

    def _second_turn(self, weights, prompt: _Segment, writing: Writing, own, crop: _Segment):
        model, (first, length) = nnx.merge(self._graph, weights), self._engine.rows.layout.turn_lens
        cache = prefill(model, prompt.ids, prompt.valid, prompt.images, 1, first)[2]
        cache, next_B = reread(model, cache, writing, *own)
        _, hidden, cache, next_B = append_pictures(model, cache, crop.ids, crop.valid, crop.images, next_B, length)
        return self._write(model, Ready(hidden, cache, cache.k.shape[3] - length, next_B), length)

    def _write(self, model, ready: Ready, length: int) -> tuple[KVCache, Writing]:
        writing = self._sampler.begin(model, ready, length, None, self._keys)
        return self._sampler.go_on(model, ready.cache, writing, self._tokens)

    def _go_on(self, weights, cache: KVCache, writing: Writing) -> tuple[KVCache, Writing]:
        return self._sampler.go_on(nnx.merge(self._graph, weights), cache, writing, self._tokens)

    def _finish(self, cache: KVCache, writing: Writing) -> tuple[Writing, list[int]]:
        """The whole turn, and its ids."""
        while int(writing.step) < writing.ids_BT.shape[1] and int(writing.most_alive):
            cache, writing = self._more(self._weights, cache, writing)
        return writing, np.asarray(writing.ids_BT)[0][np.asarray(writing.written_BT)[0]].tolist()

    def play(self, questions: Sequence[Question]) -> list[str | None]:
        """The answers."""
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> str | None:
        engine, rows = self._engine, self._engine.rows
        prompts = rows.prompts([question])
        prompt = jax.device_put(_Segment(prompts.ids, prompts.valid, self._sizes.prepare(*prompts.views)))
        writing, ids = self._finish(*self._first(self._weights, prompt))
        request = engine.tool.request(rows.decode(ids), View(question, rows.box_frame(question.image.frame)))
        if isinstance(request, Request) and request.wanted:
            picture = as_shown(engine.tool.run(question.image, request)).picture
            views = rows.views([picture], rows.layout.picture_side)
            written, slots = rows.replies([[ids]], rows.views([None], rows.layout.picture_side)), rows.layout.turn(0)
            own = written.ids[:, slots], written.valid[:, slots]
            ids_BT, valid_BT = rows.picture_slots(views.grids)
            crop = _Segment(ids_BT, valid_BT, self._sizes.prepare(*views))
            _, ids = self._finish(*self._second(self._weights, prompt, writing, own, jax.device_put(crop)))
        return parse_answer(rows.decode(ids))
