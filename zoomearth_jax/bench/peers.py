"""`zoomearth bench peers`: training steps and decoding against HF transformers in torch on the CPU.

Both get the same weights, inputs and cores, in float32. First they are compared (loss, gradients, greedily decoded tokens),
which also warms them up; then they take turns, and the medians count.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoomearth_jax.bench.random_checkpoint import shortened, write_random_checkpoint
from zoomearth_jax.data_pipeline.rows.builder import TokenIds
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.attention import one_sample
from zoomearth_jax.models.family import Images
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from zoomearth_jax.models.qwen2_5_vl.patches import vision_layout
from zoomearth_jax.models.qwen2_5_vl.vision import pixel_values
from zoomearth_jax.rl.policy import last_valid, token_logprobs
from zoomearth_jax.rl.rollout.decoding import Ready, Sampler, grow_cache
from zoomearth_jax.rl.rollout.sampling import row_keys

LEAST_SECONDS = 2.0  # short runs take more turns than asked for, until both have had this long together


@dataclasses.dataclass(frozen=True)
class PeersConfig:
    """Training steps and decoding against HF transformers in torch on the CPU.

    Attributes:
        models: which of nano, 100m, full_width (the 3B's widths with 2 + 2 layers; 14 GB).
        repeats: timings of each at least, of which the median counts.
        threads: cores that both get, all that this process may use by default.
        json: print JSON.
    """

    models: tuple[str, ...] = ("nano", "100m", "full_width")
    repeats: int = 5
    threads: int | None = None
    json: bool = False

    def __post_init__(self):
        unknown = set(self.names) - set(CASES)
        if unknown:
            raise UserError(f"bench peers: unknown models {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
        if self.repeats < 1 or (self.threads is not None and self.threads < 1):
            raise UserError("bench peers: repeats and threads must be positive")

    @property
    def names(self) -> list[str]:
        """The models, which may be separated by commas too."""
        return ",".join(self.models).split(",")


class Case(NamedTuple):
    """A model and the shapes it is timed at.

    Each row has a square image of `patches` a side. Training rows have `length` tokens, the loss is on their second half;
    decoding writes `new_tokens` after prompts of `prompt` tokens.
    """

    config: ModelConfig
    patches: int
    train_rows: int
    length: int
    decode_rows: int
    prompt: int
    new_tokens: int


def _config_100m() -> ModelConfig:
    """94 M parameters."""
    vision = VisionConfig(depth=8, width=512, num_heads=8, mlp_dim=1024, out_dim=512, full_attention_blocks=(3, 7))
    sizes: dict[str, Any] = {"vocab_size": 50_000, "width": 512, "num_layers": 12, "mlp_dim": 2048}
    special = {"bos_id": 0, "eos_id": 2, "vision_start_id": 3, "vision_end_id": 4}
    text = TextConfig(**sizes, num_heads=8, num_kv_heads=2, mrope_section=(8, 12, 12))
    return ModelConfig(vision, text, image_token_id=5, video_token_id=6, **special)


CASES = {
    "nano": lambda: Case(preset("nano")[0], 8, 32, 64, decode_rows=64, prompt=40, new_tokens=32),
    "100m": lambda: Case(_config_100m(), 16, 4, 256, decode_rows=16, prompt=160, new_tokens=32),
    "full_width": lambda: Case(
        shortened(preset("qwen2_5_vl_3b")[0], 2, 2), 16, 1, 256, decode_rows=4, prompt=128, new_tokens=16
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
        """Loads the checkpoint; parameters are (language model, vision encoder)."""
        self._config = case.config
        self._graph, *self._params = nnx.split(
            Qwen2_5_VL.from_pretrained(directory), lambda path, _: path[0] != "vision", ...
        )
        self._loss = jax.jit(self._loss_of)
        self._gradients = {
            False: jax.jit(jax.value_and_grad(self._loss_of)),
            True: jax.jit(jax.value_and_grad(self._loss_of, argnums=(0, 1))),
        }
        self._generate = jax.jit(self._generate_from, static_argnames="count")

    def _look(self, text, vision, ids_BT, views, layout):
        model = nnx.merge(self._graph, text, vision)
        merge, valid_BT = self._config.vision.merge_size, jnp.ones(ids_BT.shape, bool)
        grids_BI2 = jnp.full((len(ids_BT), 1, 2), int(views.shape[1] // self._config.vision.patch_size // merge))
        features = model.encode_views(Images(views, layout, grids_BI2))
        return model, valid_BT, model.segment(ids_BT, one_sample(valid_BT), features, grids_BI2)

    def _loss_of(self, text, vision, ids_BT, views, layout):
        model, _, (hidden_BTD, _, _) = self._look(text, vision, ids_BT, views, layout)
        half = ids_BT.shape[1] // 2
        return -token_logprobs(model, hidden_BTD[:, half - 1 : -1], ids_BT[:, half:], 1.0)[0].mean()

    def _generate_from(self, text, vision, ids_BT, views, layout, count: int):
        model, valid_BT, (hidden_BTD, cache, next_B) = self._look(text, vision, ids_BT, views, layout)
        banned = (self._config.image_token_id, self._config.video_token_id)
        (keys_B,) = row_keys(jax.random.key(0), jnp.arange(len(ids_BT)), turns=1)
        cache = grow_cache(cache, count)
        ready = Ready(last_valid(hidden_BTD, valid_BT), cache, next_B)
        sampler = Sampler(TokenIds(0, (-1,), banned), 0.0)
        writing = sampler.begin(model, ready, count, None, keys_B)
        return sampler.go_on(model, cache, writing, count)[1].ids_BT

    def _inputs(self, batch: Batch):
        return *self._params, batch.ids, batch.views, vision_layout(batch.grids[:, 1:], self._config.vision)

    def loss(self, batch: Batch) -> float:
        """The loss, without gradients."""
        return float(self._loss(*self._inputs(batch)))

    def step(self, batch: Batch, vision: bool = False) -> list:
        """Loss and gradients, of only the language model or of the vision encoder too."""
        return jax.tree.leaves(jax.block_until_ready(self._gradients[vision](*self._inputs(batch)))[1])

    def generate(self, batch: Batch, count: int) -> np.ndarray:
        """Tokens that greedy decoding writes, [B, count]."""
        return np.asarray(self._generate(*self._inputs(batch), count=count))


class Theirs:
    """HF transformers, as its own trainers and `generate` use it."""

    def __init__(self, directory: str, case: Case):
        """Loads the checkpoint."""
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.torch, self._config = torch, case.config
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
        self._model.generation_config.eos_token_id = None

    def _inputs(self, batch: Batch) -> dict:
        ids = self.torch.tensor(batch.ids, dtype=self.torch.long)
        return {
            "input_ids": ids,
            "attention_mask": self.torch.ones_like(ids),
            "pixel_values": self.torch.tensor(batch.pixel_values),
            "image_grid_thw": self.torch.tensor(batch.grids),
            "mm_token_type_ids": (ids == self._config.image_token_id).int(),
        }

    def _loss_of(self, batch: Batch):
        inputs = self._inputs(batch)
        labels = inputs["input_ids"].clone()
        labels[:, : labels.shape[1] // 2] = -100
        return self._model(**inputs, labels=labels).loss

    def loss(self, batch: Batch) -> float:
        """The loss, without gradients."""
        with self.torch.no_grad():
            return float(self._loss_of(batch))

    def step(self, batch: Batch, vision: bool = False) -> list:
        """Loss and gradients, of only the language model or of the vision encoder too."""
        self._model.zero_grad(set_to_none=True)
        self._model.model.visual.requires_grad_(vision)
        self._loss_of(batch).backward()
        return [x.grad for x in self._model.parameters() if x.grad is not None]

    def generate(self, batch: Batch, count: int) -> np.ndarray:
        """Tokens that greedy decoding writes, [B, count]."""
        banned = [self._config.image_token_id, self._config.video_token_id]
        lengths = {"min_new_tokens": count, "max_new_tokens": count}
        with self.torch.no_grad():
            out = self._model.generate(
                **self._inputs(batch),
                **lengths,
                do_sample=False,
                suppress_tokens=banned,
                pad_token_id=self._config.bos_id,
            )
        return out[:, batch.ids.shape[1] :].numpy()


def bench_peers(config: PeersConfig) -> list[dict]:
    """Rows `model, what, ours_s, hf_s, ratio` (theirs / ours), with the shapes.

    forward is only the loss; train adds the language model's gradients, train_vision the vision encoder's too. generate
    is a whole call, prefill one that writes a single token, decode the difference.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError("bench peers needs torch: pip install torch==2.13.0 (make parity does)") from None
    if config.threads is not None:  # before JAX's and torch's threads are made, which inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: config.threads])
    return [row for name in config.names for row in _bench_case(name, CASES[name](), config.repeats)]


def _bench_case(name: str, case: Case, repeats: int) -> list[dict]:
    train = random_batch(case, case.train_rows, case.length)
    prompt = random_batch(case, case.decode_rows, case.prompt)
    with tempfile.TemporaryDirectory() as directory:
        write_random_checkpoint(directory, case.config, "float32")
        ours, theirs = Ours(directory, case), Theirs(directory, case)
        _check_same(name, ours, theirs, train, prompt, case.new_tokens)
        timed = functools.partial(_take_turns, ours, theirs, repeats)
        seconds = {
            "forward": timed(lambda peer: peer.loss(train)),
            "train": timed(lambda peer: peer.step(train)),
            "train_vision": timed(lambda peer: peer.step(train, vision=True)),
            "prefill": timed(lambda peer: peer.generate(prompt, 1)),
            "generate": timed(lambda peer: peer.generate(prompt, case.new_tokens)),
        }
    seconds["decode"] = [whole - first for whole, first in zip(seconds["generate"], seconds["prefill"], strict=True)]
    rows = []
    for what, (ours_s, hf_s) in seconds.items():
        batch = prompt if what in ("prefill", "generate", "decode") else train
        shape = {"rows": batch.ids.shape[0], "tokens": batch.ids.shape[1]}
        if batch is prompt:
            shape["new_tokens"] = {"prefill": 1, "decode": case.new_tokens - 1}.get(what, case.new_tokens)
        rows.append({"model": name, "what": what, "ours_s": ours_s, "hf_s": hf_s, "ratio": hf_s / ours_s, **shape})
    return rows


def _check_same(name: str, ours: Ours, theirs: Theirs, train: Batch, prompt: Batch, count: int) -> None:
    """A comparison of two different functions would mean nothing; this also compiles and warms up."""
    a, b = ours.loss(train), theirs.loss(train)
    differ = [f"losses {a} and {b}"] if abs(a - b) > 1e-3 * abs(b) else []
    for vision in (False, True):
        a, b = (
            sum(float(np.linalg.norm(np.asarray(x))) ** 2 for x in peer.step(train, vision)) ** 0.5
            for peer in (ours, theirs)
        )
        differ += [f"gradient norms {a} and {b}"] if abs(a - b) > 1e-3 * abs(b) else []
    for length in (1, count):
        same = (ours.generate(prompt, length) == theirs.generate(prompt, length)).mean()
        differ += [f"{1 - same:.0%} of {length} tokens"] if same < 0.95 else []  # a near-tie may fall either way
    if differ:
        raise UserError(f"bench peers: {name} differs in {', '.join(differ)}")


def _take_turns(ours: Ours, theirs: Theirs, repeats: int, run: Callable) -> list[float]:
    """Median seconds of both, timed alternately."""
    seconds: tuple[list[float], list[float]] = [], []
    while len(seconds[0]) < repeats or sum(map(sum, seconds)) < LEAST_SECONDS:
        for peer, times in zip((ours, theirs), seconds, strict=True):
            gc.collect()
            began = time.perf_counter()
            run(peer)
            times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in seconds]
