"""`zoomearth bench packing`: the fine-tuning step on packed rows against fixed ones, on the lengths that LRS-GRO has."""

from __future__ import annotations

import dataclasses
import statistics
import time

import jax
import numpy as np
import optax
from flax import nnx

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import RowLayout
from zoomearth_jax.data_pipeline.rows.builder import Prompts, Replies, Views
from zoomearth_jax.data_pipeline.rows.packing import pack
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.qwen2_5_vl.config import ModelConfig
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from zoomearth_jax.rl.batches import packed_batch, row_batch
from zoomearth_jax.rl.state import init_state
from zoomearth_jax.rl.steps import make_sft_step

# Deciles of the 2,500 questions for reinforcement learning, in pieces of Qwen's pre-tokeniser (one or more tokens each), and
# of the visual tokens of the 1,870 windows around their boxes, images taken as 4,500 px squares.
QUESTION_TOKENS = (6, 11, 11, 12, 13, 13, 14, 15, 16, 19, 27)
CROP_TOKENS = (36, 180, 252, 288, 324, 324, 324, 324, 324, 324, 324)
NO_CROP = 0.252  # of the 2,500
# Reasoning before and after the crop, in the same pieces: all that is at hand are three rows for fine-tuning.
THOUGHT_TOKENS = ((187, 91), (200, 99), (206, 132))
TEMPLATE_TOKENS, LOOK_TOKENS, ANSWER_TOKENS = 100, 35, 10  # chat and instruction; box and tags; answer and tags
HEAD_DIM = 128


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """The fine-tuning step on packed rows against fixed ones, at LRS-GRO's lengths and the 3B's episode of 512 px views.

    Attributes:
        samples: samples per step.
        pack_len: tokens of a packed row; each is a comparison.
        width: width of the decoder, in multiples of 128; the 3B's by default, for attention weighs more in a narrow one.
        layers: layers of the decoder.
        repeats: timings of each step, alternating, of which the median counts.
        seed: random seed of the lengths drawn.
        compute: number types and backends.
        json: print JSON.
    """

    samples: int = 4
    pack_len: tuple[int, ...] = (4096,)
    width: int = 2048
    layers: int = 1
    repeats: int = 3
    seed: int = 0
    compute: ComputeConfig = ComputeConfig(remat="full")
    json: bool = False

    def __post_init__(self):
        if min(self.samples, self.layers, self.repeats, self.width) < 1 or self.width % HEAD_DIM:
            raise UserError("bench packing: counts must be positive, width a multiple of 128")
        if not self.pack_len:
            raise UserError("bench packing: give at least one pack_len")


def bench_packing(config: PackingConfig) -> list[dict]:
    """Rows `pack_len, tokens, rows, fixed_padding, packed_padding, fixed_tokens_s, packed_tokens_s, ratio, loss_gap`.

    Tokens are those that exist; padding is the share of slots without one; loss_gap is relative.
    """
    model_config, layout = _sizes(config)
    fixed = lrs_gro_rows(config.samples, config.seed, model_config, layout)
    tokens = int(sum(part.valid.sum() for part in fixed))
    slots = sum(part.valid.size for part in fixed)
    model = Qwen2_5_VL(model_config, compute=config.compute, rngs=nnx.Rngs(0))
    optimizer = optax.sgd(0.0)  # the same loss again and again
    graph, state = init_state(model, optimizer, freeze_vision=True)
    step = make_sft_step(graph, optimizer, layout)
    rows = []
    for pack_len in config.pack_len:
        packed = pack(*fixed, layout.view_tokens, pack_len)
        batches = [row_batch(*fixed, model_config), packed_batch(packed, model_config)]
        state, seconds, losses = _alternate(step, state, jax.device_put(batches), config.repeats)
        rows.append(
            {
                "pack_len": pack_len,
                "tokens": tokens,
                "rows": len(packed.ids),
                "fixed_padding": 1 - tokens / slots,
                "packed_padding": 1 - tokens / packed.ids.size,
                "fixed_tokens_s": tokens / seconds[0],
                "packed_tokens_s": tokens / seconds[1],
                "ratio": seconds[0] / seconds[1],
                "loss_gap": abs(losses[1] / losses[0] - 1),
            }
        )
    return rows


def _sizes(config: PackingConfig) -> tuple[ModelConfig, RowLayout]:
    """The nano model with a decoder of the 3B's proportions (at the default width, its layer), and the 3B's row.

    Attention's share of the work depends on width and length alike, so a narrow model would tell of the wrong trade.
    """
    (model, _), (_, episode) = preset("nano"), preset("qwen2_5_vl_3b")
    text = dataclasses.replace(
        model.text,
        width=config.width,
        mlp_dim=43 * config.width // 8,
        num_layers=config.layers,
        num_heads=config.width // HEAD_DIM,
        num_kv_heads=max(1, config.width // HEAD_DIM // 8),
        mrope_section=(16, 24, 24),
    )
    model = dataclasses.replace(model, text=text, vision=dataclasses.replace(model.vision, out_dim=config.width))
    return model, episode.layout(model.merged_px)


def lrs_gro_rows(samples: int, seed: int, model: ModelConfig, layout: RowLayout) -> tuple[Prompts, Replies]:
    """Fixed rows of random ids and blank views with LRS-GRO's lengths."""
    rng = np.random.default_rng(seed)
    quantiles = np.linspace(0, 1, len(QUESTION_TOKENS))
    questions, crops = (
        np.interp(rng.random(samples), quantiles, values).round().astype(int)
        for values in (QUESTION_TOKENS, CROP_TOKENS)
    )
    zooms, thoughts = rng.random(samples) >= NO_CROP, np.array(THOUGHT_TOKENS)[rng.integers(0, 3, samples)]
    side = layout.view_side // layout.merged_px
    pixels = np.full((samples, layout.view_side, layout.view_side, 3), 128, np.uint8)
    overviews = Views(pixels, np.full((samples, 2), side, np.int32))
    heights = np.maximum(1, np.round(crops / side)).astype(np.int32) * zooms
    windows = Views(pixels, np.stack([heights, side * zooms], 1).astype(np.int32))
    prompt_tokens = questions + TEMPLATE_TOKENS + layout.view_tokens + 2
    first = thoughts[:, 0] + np.where(zooms, LOOK_TOKENS, ANSWER_TOKENS)
    second = (thoughts[:, 1] + ANSWER_TOKENS) * zooms
    prompts = _text(rng, prompt_tokens, layout.prompt_len, model)
    prompts[0][:, : layout.view_tokens] = model.image_token_id
    turns = [_text(rng, n, room, model) for n, room in zip((first, second), layout.turn_lens, strict=True)]
    slot, ends = np.arange(layout.picture_len), windows.grids.prod(-1)[:, None]
    crop = np.where((slot > 0) & (slot <= ends), model.image_token_id, model.vision_start_id)
    seen = (slot < ends + 2) & (ends > 0)
    ids = np.concatenate([turns[0][0], crop, turns[1][0]], axis=1).astype(np.int32)
    target = np.concatenate([turns[0][1], np.zeros_like(seen), turns[1][1]], axis=1)
    valid = np.concatenate([_without_stop(turns[0][1]), seen, _without_stop(turns[1][1])], axis=1)
    return Prompts(prompts[0], prompts[1], overviews), Replies(ids, valid, target, windows)


def _text(rng, lengths, room: int, model: ModelConfig):
    """Random ids [B, room] that are no special ones, and which of them exist."""
    first = max(model.image_token_id, model.video_token_id) + 1
    ids = rng.integers(first, model.text.vocab_size, (len(lengths), room)).astype(np.int32)
    return ids, np.arange(room) < lengths[:, None]


def _without_stop(target):
    """All but the last token of each turn."""
    return target & np.pad(target[:, 1:], ((0, 0), (0, 1)))


def _alternate(step, state, batches, repeats: int):
    """The state, median seconds of each batch's step after a warm-up, and losses."""
    seconds: list[list[float]] = [[] for _ in batches]
    losses = [0.0] * len(batches)
    for repeat in range(repeats + 1):
        for kind, batch in enumerate(batches):
            began = time.perf_counter()
            state, metrics = step(state, batch)
            losses[kind] = float(metrics["loss"])
            if repeat:
                seconds[kind].append(time.perf_counter() - began)
    return state, [statistics.median(times) for times in seconds], losses
