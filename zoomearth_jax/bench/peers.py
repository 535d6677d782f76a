"""`zoomearth bench peers`: training steps and decoding against HF transformers in torch on the CPU.

Both run the same weights on the same inputs with as many threads, in float32, and are first compared: the loss, and the
tokens that greedy decoding writes. Then they take turns, and the medians count. Loss and gradients are those of
fine-tuning: mean cross-entropy over the second half of each row, vision encoder frozen.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import statistics
import tempfile
import time
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoomearth_jax.bench.random_checkpoint import shortened, write_random_checkpoint
from zoomearth_jax.configs.model import ModelConfig, TextConfig, VisionConfig
from zoomearth_jax.configs.presets import preset
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.qwen2_5_vl import Qwen2_5_VL
from zoomearth_jax.models.vision import pixel_values, vision_layout
from zoomearth_jax.rl.policy import last_valid, token_logprobs
from zoomearth_jax.rl.rollout import _grow as grow_cache
from zoomearth_jax.rl.rollout import decode
from zoomearth_jax.rl.sampling import row_keys


@dataclasses.dataclass(frozen=True)
class PeersConfig:
    """Training steps and decoding against HF transformers in torch on the CPU.

    Attributes:
        models: which of nano, 100m, full_width (the 3B's widths with 2 + 2 layers; 12 GB).
        repeats: timings of each, of which the median counts.
        json: print JSON.
    """

    models: tuple[str, ...] = ("nano", "100m", "full_width")
    repeats: int = 5
    json: bool = False

    def __post_init__(self):
        unknown = set(self.models) - set(CASES)
        if unknown or not self.models:
            raise UserError(f"bench peers: unknown models {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
        if self.repeats < 1:
            raise UserError("bench peers: repeats must be positive")


class Case(NamedTuple):
    """A model and the shapes it is timed at: rows of `length` tokens with a square image of `patches` a side."""

    config: ModelConfig
    patches: int
    length: int
    train_rows: int
    decode_rows: int
    new_tokens: int


def _config_100m() -> ModelConfig:
    vision = VisionConfig(depth=8, width=512, num_heads=8, mlp_dim=1024, out_dim=512, full_attention_blocks=(3, 7))
    text = TextConfig(
        vocab_size=50_000,
        width=512,
        num_layers=12,
        num_heads=8,
        num_kv_heads=2,
        mlp_dim=2048,
        mrope_section=(8, 12, 12),
    )
    special = {"bos_id": 0, "eos_id": 2, "vision_start_id": 3, "vision_end_id": 4}
    return ModelConfig(vision, text, image_token_id=5, video_token_id=6, **special)


CASES = {
    "nano": lambda: Case(preset("nano")[0], patches=8, length=64, train_rows=32, decode_rows=64, new_tokens=32),
    "100m": lambda: Case(_config_100m(), patches=16, length=256, train_rows=4, decode_rows=16, new_tokens=32),
    "full_width": lambda: Case(
        shortened(preset("qwen2_5_vl_3b")[0], 2, 2), patches=36, length=640, train_rows=1, decode_rows=8, new_tokens=16
    ),
}


class Batch(NamedTuple):
    """Rows with an image each: ids [B, T], uint8 views [B, side, side, 3], and the same as HF's pixel_values, grids."""

    ids: np.ndarray
    views: np.ndarray
    pixel_values: np.ndarray
    grids: np.ndarray


def random_batch(case: Case, rows: int, length: int) -> Batch:
    """Start of image, its placeholders, end of image, then random text."""
    config, rng = case.config, np.random.default_rng(rows)
    tokens, side = case.patches**2 // config.vision.merge_size**2, case.patches * config.vision.patch_size
    ids = rng.integers(7, config.text.vocab_size - 400, (rows, length))  # the ids at both ends may be special
    ids[:, 0], ids[:, 1 : 1 + tokens], ids[:, 1 + tokens] = (
        config.vision_start_id,
        config.image_token_id,
        config.vision_end_id,
    )
    views = rng.integers(0, 256, (rows, side, side, 3), np.uint8)
    pixels = np.concatenate([pixel_values(view, config.vision) for view in views])
    return Batch(ids.astype(np.int32), views, pixels, np.array([[1, case.patches, case.patches]] * rows))


class Ours:
    """The port, as fine-tuning and the rollout use it."""

    def __init__(self, directory: str, case: Case):
        self.case, model = case, Qwen2_5_VL.from_pretrained(directory)
        graph, frozen, trainable = nnx.split(model, lambda path, _: path[0] == "vision", ...)
        self._params = trainable, frozen
        self._loss = jax.jit(lambda trainable, *rest: self._loss_of(nnx.merge(graph, trainable, rest[0]), *rest[1:]))
        self._step = jax.jit(jax.value_and_grad(self._loss))
        self._generate = jax.jit(lambda params, *rest: self._generate_from(nnx.merge(graph, *params), *rest))

    def _look(self, model, ids_BT, views, layout):
        grids_BI2 = jnp.full((len(ids_BT), 1, 2), self.case.patches // model.config.vision.merge_size)
        valid_BT = jnp.ones(ids_BT.shape, bool)
        return valid_BT, model.segment(ids_BT, valid_BT, model.encode_views(views, layout), grids_BI2)

    def _loss_of(self, model, ids_BT, views, layout):
        _, (hidden_BTD, _, _) = self._look(model, ids_BT, views, layout)
        half = ids_BT.shape[1] // 2
        return -token_logprobs(model, hidden_BTD[:, half - 1 : -1], ids_BT[:, half:], 1.0)[0].mean()

    def _generate_from(self, model, ids_BT, views, layout):
        valid_BT, (hidden_BTD, cache, next_B) = self._look(model, ids_BT, views, layout)
        count = self.case.new_tokens
        banned = (model.config.image_token_id, model.config.video_token_id)
        rows = SimpleNamespace(stop_ids=(-1,), pad_id=0, banned_ids=banned)
        keys_B = row_keys(jax.random.key(0), jnp.arange(len(ids_BT)))[0]
        first, active = last_valid(hidden_BTD, valid_BT), jnp.ones(len(ids_BT), bool)
        cache = grow_cache(cache, count)
        return decode(model, cache, ids_BT.shape[1], count, first, next_B, active, keys_B, 0.0, rows)[1]

    def _inputs(self, batch: Batch):
        return batch.ids, batch.views, vision_layout(batch.grids[:, 1:], self.case.config.vision)

    def loss(self, batch: Batch) -> float:
        """The loss alone."""
        return float(self._loss(*self._params, *self._inputs(batch)))

    def step(self, batch: Batch) -> None:
        """Loss and gradients."""
        jax.block_until_ready(self._step(*self._params, *self._inputs(batch)))

    def generate(self, batch: Batch) -> np.ndarray:
        """Tokens that greedy decoding writes, [B, new_tokens]."""
        return np.asarray(self._generate(self._params, *self._inputs(batch)))


class Theirs:
    """HF transformers, as its own trainers and `generate` use it."""

    def __init__(self, directory: str, case: Case):
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.torch, self.case = torch, case
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
        self.model.model.visual.requires_grad_(False)
        self.model.generation_config.eos_token_id = None

    def _inputs(self, batch: Batch) -> dict:
        ids = self.torch.tensor(batch.ids, dtype=self.torch.long)
        return {
            "input_ids": ids,
            "attention_mask": self.torch.ones_like(ids),
            "pixel_values": self.torch.tensor(batch.pixel_values),
            "image_grid_thw": self.torch.tensor(batch.grids),
            "mm_token_type_ids": (ids == self.case.config.image_token_id).int(),
        }

    def _loss_of(self, batch: Batch):
        inputs = self._inputs(batch)
        labels = inputs["input_ids"].clone()
        labels[:, : labels.shape[1] // 2] = -100
        return self.model(**inputs, labels=labels).loss

    def loss(self, batch: Batch) -> float:
        """The loss alone."""
        with self.torch.no_grad():
            return float(self._loss_of(batch))

    def step(self, batch: Batch) -> None:
        """Loss and gradients."""
        self.model.zero_grad(set_to_none=True)
        self._loss_of(batch).backward()

    def generate(self, batch: Batch) -> np.ndarray:
        """Tokens that greedy decoding writes, [B, new_tokens]."""
        config, count = self.case.config, self.case.new_tokens
        with self.torch.no_grad():
            out = self.model.generate(
                **self._inputs(batch),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                suppress_tokens=[config.image_token_id, config.video_token_id],
                pad_token_id=config.bos_id,
            )
        return out[:, batch.ids.shape[1] :].numpy()


def bench_peers(config: PeersConfig) -> list[dict]:
    """Rows `model, what, ours_s, hf_s, ratio` (theirs / ours), with the shapes."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError("bench peers needs torch: pip install torch==2.13.0 (make parity does)") from None
    return [row for name in config.models for row in _bench_case(name, CASES[name](), config.repeats)]


def _bench_case(name: str, case: Case, repeats: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as directory:
        write_random_checkpoint(directory, case.config, "float32")
        ours, theirs = Ours(directory, case), Theirs(directory, case)
        train = random_batch(case, case.train_rows, case.length)
        prompt = random_batch(case, case.decode_rows, case.length // 2 + case.patches**2 // 8)
        _check_same(name, ours, theirs, train, prompt)
        rows = []
        for what, batch, extra in (("loss", train, {}), ("step", train, {}), ("generate", prompt, {})):
            ours_s, hf_s = _take_turns(lambda peer: getattr(peer, what)(batch), ours, theirs, repeats)  # noqa: B023
            shape = {"rows": len(batch.ids), "tokens": batch.ids.shape[1]}
            if what == "generate":
                extra = {"new_tokens": case.new_tokens}
            rows.append(
                {"model": name, "what": what, "ours_s": ours_s, "hf_s": hf_s, "ratio": hf_s / ours_s, **shape, **extra}
            )
    del ours, theirs
    gc.collect()
    return rows


def _check_same(name: str, ours: Ours, theirs: Theirs, train: Batch, prompt: Batch) -> None:
    """A comparison of two different functions would mean nothing; this also compiles and warms up."""
    a, b = ours.loss(train), theirs.loss(train)
    same = (ours.generate(prompt) == theirs.generate(prompt)).mean()
    ours.step(train), theirs.step(train)
    if abs(a - b) > 1e-3 * abs(b) or same < 0.9:
        raise UserError(f"bench peers: {name} differs: losses {a} and {b}, {same:.0%} of the tokens equal")


def _take_turns(run, ours: Ours, theirs: Theirs, repeats: int) -> tuple[float, float]:
    """Median seconds of both, timed alternately."""
    seconds = {ours: [], theirs: []}
    for _ in range(repeats):
        for peer, times in seconds.items():
            gc.collect()
            began = time.perf_counter()
            run(peer)
            times.append(time.perf_counter() - began)
    return statistics.median(seconds[ours]), statistics.median(seconds[theirs])
