"""What a compiled training step holds: read from the program, nothing is run."""

import dataclasses
import functools
import math
import re

import jax
import optax
import pytest
from flax import nnx

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.models.families import abstract_model
from zoomearth_jax.models.presets import preset
from zoomearth_jax.rl.batches import RowBatch, row_batch
from zoomearth_jax.rl.state import TrainState
from zoomearth_jax.rl.steps import make_sft_step

ROWS, VOCAB = 256, 131072


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@functools.cache  # of the same model's rows
def compiled_step(rows, remat="none", *, freeze_vision=False, vocab=597):
    """The compiled SFT step of a nano model, from shapes alone."""
    config, _ = preset("nano")
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=vocab))
    model = abstract_model(config, ComputeConfig(remat=remat))
    optimizer = optax.adam(1e-3)
    graph, frozen, trainable = nnx.split(model, lambda path, _: freeze_vision and path[0] == "vision", ...)
    step = jax.ShapeDtypeStruct((), "int32")
    state = TrainState(trainable, frozen, jax.eval_shape(optimizer.init, trainable), step)
    questions = scene_questions("sft", 0, 0, 1, 0.0)
    overviews = [rows.overview(q) for q in questions]
    one = row_batch(rows.prompts(questions, overviews), rows.reference_replies(questions), config)
    batch: RowBatch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((ROWS, *x.shape[1:]), x.dtype), one)
    return make_sft_step(graph, optimizer, rows.layout).lower(state, batch).compile()


def largest_float32(compiled) -> int:
    """Elements of the largest float32 array in the program."""
    return max(math.prod(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", compiled.as_text()))


def test_no_array_of_all_logits(nano):
    all_logits = ROWS * len(nano.rows.layout.written()) * VOCAB
    compiled = compiled_step(nano.rows, freeze_vision=True, vocab=VOCAB)
    assert largest_float32(compiled) <= all_logits / 2 + ROWS * VOCAB  # two chunks


@pytest.mark.parametrize("policy", ["dots", "full"])
@pytest.mark.slow
def test_remat_saves_memory(nano, policy):
    keep, recompute = (compiled_step(nano.rows, name) for name in ("none", policy))
    assert recompute.memory_analysis().temp_size_in_bytes < 0.8 * keep.memory_analysis().temp_size_in_bytes


def test_a_frozen_vision_encoder_has_no_backward(nano):
    frozen, trained = compiled_step(nano.rows, freeze_vision=True, vocab=VOCAB), compiled_step(nano.rows)
    backward = re.compile(r"transpose\(jvp[^\"]*/branch_")  # only the encoder's blocks have two branches
    assert backward.search(trained.as_text())
    assert not backward.search(frozen.as_text())
