"""The FLOPs formula, against counting by hand and against XLA's own count of a compiled forward pass."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from zoomearth_jax.hardware.flops import (
    RowCounts,
    forward_flops,
    full_counts,
    grpo_flops,
    joined_counts,
    mfu,
    row_counts,
    segment_pairs,
    sft_flops,
)
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from zoomearth_jax.models.qwen2_5_vl.patches import vision_layout

ARRAYS = {
    "prompt_A": [5],
    "reply_B": [3, 0],
    "scored_B": [2, 4],
    "overview_A2": [[2, 2]],
    "picture_BI2": [[[1, 3]], [[0, 0]]],
}
COUNTS = RowCounts(**{name: np.array(values) for name, values in ARRAYS.items()})


def test_decoder_by_hand():
    text = TextConfig(
        vocab_size=10, width=8, num_layers=3, num_heads=4, num_kv_heads=2, mlp_dim=12, mrope_section=(1, 0, 0)
    )
    config = ModelConfig(VisionConfig(out_dim=8), text)
    products = {"q": 8 * 8, "k": 8 * 4, "v": 8 * 4, "o": 8 * 8, "mlp": 3 * 8 * 12}
    tokens = 5 + 3 + 0  # the prompt once for both replies
    # queries of the prompt see 1 … 5 keys, those of the reply the prompt's 5 and 1 … 3 of their own
    pairs = (1 + 2 + 3 + 4 + 5) + (6 + 7 + 8)
    forward = forward_flops(config, COUNTS)
    assert forward.layers == 3 * tokens * 2 * sum(products.values())
    assert forward.attention == 3 * pairs * (2 * 8 + 2 * 8)  # scores, and the sum of values, over all heads
    assert forward.logits == (2 + 4) * 2 * 8 * 10
    assert forward.vision == config.vision_flops([[2, 2], [1, 3]])


def test_vision_by_hand():
    """5 x 6 visual tokens in windows of 4 x 4, two of three blocks windowed."""
    config = VisionConfig(depth=3, width=16, num_heads=2, mlp_dim=24, out_dim=8, full_attention_blocks=(1,))
    patches, windows = 4 * 30, [4 * 16, 4 * 8, 4 * 4, 4 * 2]
    assert sum(windows) == patches
    assert max(windows) == 64
    products = 3 * patches * 2 * (16 * 48 + 16 * 16 + 3 * 16 * 24)
    attention = 4 * 16 * (patches**2 + 2 * sum(w * w for w in windows))
    merger = 30 * 2 * (64 * 64 + 64 * 8)
    expected = patches * 2 * (3 * 2 * 14 * 14) * 16 + products + attention + merger
    assert config.flops([[5, 6]]) == expected
    assert config.flops([[5, 6], [0, 0], [6, 5]]) == 2 * expected


def test_steps_count_what_trains():
    config, _ = preset("nano")
    forward = forward_flops(config, COUNTS)
    text = sum(forward[1:])
    assert sft_flops(config, COUNTS, freeze_vision=True) == 3 * text + forward.vision
    assert sft_flops(config, COUNTS, freeze_vision=False) == 3 * (text + forward.vision)
    assert sft_flops(config, COUNTS, freeze_vision=True, lora=True) == 2 * text + forward.attention + forward.vision
    assert grpo_flops(config, COUNTS, freeze_vision=True, kl=False) == 3 * text
    assert grpo_flops(config, COUNTS, freeze_vision=True, kl=True, updates=2) == 2 * 4 * text
    assert grpo_flops(config, COUNTS, freeze_vision=False, kl=True) == 4 * (text + forward.vision)
    assert grpo_flops(config, COUNTS, freeze_vision=True, kl=False, scorings=2) == 5 * text
    assert grpo_flops(config, COUNTS, freeze_vision=False, kl=False, scorings=1) == 4 * (text + forward.vision)
    pictures = config.vision_flops(COUNTS.picture_BI2.reshape(-1, 2))
    assert 0 < pictures < forward.vision
    assert grpo_flops(config, COUNTS, freeze_vision=True, kl=False, distills=True) == 4 * text + pictures
    assert grpo_flops(config, COUNTS, freeze_vision=False, kl=False, distills=True) == 4 * (text + forward.vision)
    assert mfu(2e12, 0.5, 4, 10e12) == pytest.approx(0.1)


def test_what_several_batches_cost_adds_up():
    text = TextConfig(num_layers=3)
    config = ModelConfig(VisionConfig(out_dim=text.width), text)
    both = joined_counts([COUNTS, COUNTS])
    assert (both.tokens, both.images, both.samples) == (2 * COUNTS.tokens, 2 * COUNTS.images, 2 * COUNTS.samples)
    np.testing.assert_allclose(forward_flops(config, both), 2 * np.array(forward_flops(config, COUNTS)))


def test_padding_is_not_counted(nano):
    from zoomearth_jax.data_pipeline.questions.procedural import scene_questions

    questions = scene_questions("sft", 0, 0, 4, global_share=0.5)
    prompts, replies = nano.rows.supervised(questions)
    counts = row_counts(prompts, replies)
    assert counts.tokens == prompts.valid.sum() + replies.valid.sum()
    assert counts.images == 4 + sum(q.box is not None for q in questions)
    most = full_counts(nano.rows.layout, 4)
    assert sft_flops(nano.model.config, counts, freeze_vision=True) < sft_flops(
        nano.model.config, most, freeze_vision=True
    )
    assert most.tokens == 4 * (nano.rows.layout.prompt_len + nano.rows.layout.reply_len)


def test_the_3b_costs_two_flops_a_parameter_and_token():
    """The usual rule of thumb, without the embedding table (311 M), whose rows are only looked up."""
    config, _ = preset("qwen2_5_vl_3b")
    one = RowCounts(np.array([1000]), np.array([0]), np.array([0]), np.zeros((1, 2), int), np.zeros((1, 2), int))
    assert forward_flops(config, one).layers == pytest.approx(2 * 2.775e9 * 1000, rel=2e-3)


def xla_flops(function, *arrays) -> float:
    return jax.jit(function).lower(*arrays).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("full", [True, False])
def test_vision_as_xla_counts_it(full):
    """One block, so that no loop hides work; XLA adds what isn't a matrix product."""
    config, _ = preset("nano")
    sizes = {"depth": 1, "width": 128, "mlp_dim": 512, "full_attention_blocks": (0,) if full else ()}
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, **sizes))
    grids = np.array([[16, 16], [16, 16]])
    layout = vision_layout(grids, config.vision)
    graph, params = nnx.split(Qwen2_5_VL(config, rngs=nnx.Rngs(0)).vision)
    patches = np.zeros((2, 256, config.vision.patch_dim), np.float32)
    counted = xla_flops(lambda params, patches: nnx.merge(graph, params)(patches, layout), params, patches)
    assert counted == pytest.approx(config.vision_flops(grids // 2), rel=0.03)


def test_decoder_as_xla_counts_it():
    config, _ = preset("nano")
    text = dataclasses.replace(
        config.text, num_layers=1, width=256, num_heads=4, mlp_dim=512, mrope_section=(8, 12, 12)
    )
    config = dataclasses.replace(config, text=text, vision=dataclasses.replace(config.vision, out_dim=256))
    graph, params = nnx.split(Qwen2_5_VL(config, rngs=nnx.Rngs(0)))
    ids, samples = np.full((2, 128), 7), np.ones((2, 128), np.int32)

    def forward(params, ids, samples):
        model = nnx.merge(graph, params)
        return model.decoder.logits(model.segment(ids, samples)[0])

    none = np.zeros((2, 2), int)
    ours = forward_flops(config, RowCounts(np.array([128, 128]), np.array([0, 0]), np.array([128, 128]), none, none))
    # XLA's plain attention also computes the pairs above the diagonal
    square = ours.attention * 128 * 128 / segment_pairs(128)
    assert xla_flops(forward, params, ids, samples) == pytest.approx(ours.layers + square + ours.logits, rel=0.03)
