"""Packed rows train as fixed rows do: loss and gradients, no sight of the neighbours, no compilation per batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.rows.packing import pack
from zoomearth_jax.rl.batches import packed_batch, row_batch
from zoomearth_jax.rl.policy import packed_logprobs
from zoomearth_jax.rl.state import init_state
from zoomearth_jax.rl.steps import make_sft_step
from zoomearth_jax.runs.models import load_model

LENGTH = 160  # three samples of about 50 tokens


@pytest.fixture(scope="module")
def fixed(nano):
    """Rows of samples with and without crop, with square and oblong views."""
    questions = scene_questions("sft", 3, 0, 8, global_share=0.4)
    overviews = [nano.rows.overview(q) for q in questions]
    overviews[1], overviews[2] = overviews[1][:56], overviews[2][:, :84]
    questions[3] = dataclasses.replace(questions[3], text="Which?")
    prompts, replies = nano.rows.prompts(questions, overviews), nano.rows.reference_replies(questions)
    assert {4 * 2, 4 * 3, 16} <= set(prompts.views.grids.prod(1).tolist())
    assert 0 < (replies.pictures.grids.prod(1) == 0).sum() < 7  # some without a crop, some with
    return prompts, replies


@pytest.fixture(scope="module")
def packed(fixed, nano):
    rows = pack(*fixed, nano.rows.layout.view_tokens, LENGTH)
    assert (rows.samples.max(1) >= 2).sum() >= 2
    return rows


def stepped(nano, batch):
    """Metrics and parameters after one step of plain gradient descent, the vision encoder included."""
    graph, state = init_state(load_model("nano").model, optax.sgd(1.0), freeze_vision=False)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(state.trainable))
    state, metrics = make_sft_step(graph, optax.sgd(1.0), nano.rows.layout)(state, batch)
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(state.trainable))
    return metrics, jax.tree.map(np.subtract, before, after)


@pytest.mark.slow
def test_loss_and_gradients_are_those_of_fixed_rows(nano, fixed, packed):
    config = nano.model.config
    want, want_grads = stepped(nano, row_batch(*fixed, config))
    got, got_grads = stepped(nano, packed_batch(packed, config))
    assert float(got["loss"]) == pytest.approx(float(want["loss"]), rel=1e-5)
    assert float(got["entropy"]) == pytest.approx(float(want["entropy"]), rel=1e-5)

    def close(got, want):
        assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want) + 1e-6

    jax.tree.map(close, got_grads, want_grads)


def test_a_sample_sees_nothing_of_its_neighbours(nano, packed):
    row = int(np.argmax(packed.samples.max(1) >= 2))
    graph, params = nnx.split(nano.model)
    features = jnp.asarray(np.random.default_rng(0).normal(size=(len(packed.views.grids), 16, 96)), jnp.float32)

    @jax.jit
    def logprobs(ids, features):
        return packed_logprobs(nnx.merge(graph, params), packed._replace(ids=ids), features)[0][row]

    own = packed.samples[row, packed.places[row]] == 2
    want = np.asarray(logprobs(packed.ids, features))
    other_text = (packed.samples[row] == 1) & (packed.ids[row] != nano.rows.image_id)
    ids = packed.ids.copy()
    ids[row, other_text] = 50
    first_view = packed.features[0, row, 0] // nano.rows.layout.view_tokens
    got = np.asarray(logprobs(ids, features.at[first_view].set(7.0)))
    mask = packed.target[row]
    np.testing.assert_array_equal(got[own & mask], want[own & mask])
    assert (got != want)[~own & mask].any()


@pytest.mark.slow
def test_batches_of_one_shape_compile_once(nano):
    graph, state = init_state(load_model("nano").model, optax.sgd(1e-3), freeze_vision=True)
    step = make_sft_step(graph, optax.sgd(1e-3), nano.rows.layout)
    shapes = set()
    for number in range(6):
        rows = nano.rows.supervised(scene_questions("sft", 3, 8 * number, 8, global_share=0.5))
        packed = pack(*rows, nano.rows.layout.view_tokens, 256)
        shapes.add((packed.ids.shape, packed.places.shape))
        state, metrics = step(state, packed_batch(packed, nano.model.config))
        assert np.isfinite(float(metrics["loss"]))
    assert step._cache_size() == len(shapes) <= 3
