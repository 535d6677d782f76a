"""Tokens written with int8 kernels: nearly the exact sampler, whose difference the objective's importance weight corrects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.processes import result, start
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.sharding import make_mesh
from zoomearth_jax.rl.grpo import GRPO, Asked
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model

KEY, T1 = jax.random.key(0), SamplingConfig(temperature=1.0)
INT8, CAP = RolloutConfig(weights="int8"), ObjectiveConfig(kl_weight=0.0, importance_cap=2.0)


@pytest.fixture(scope="module")
def tuned():
    return load_model("nano-grpo")


@pytest.fixture(scope="module")
def questions():
    return scene_questions("test", 1, 0, 8, global_share=0.3)


@pytest.fixture(scope="module")
def int8(nano):
    return RolloutEngine(nano.model, nano.rows, config=INT8)


@pytest.mark.slow
def test_most_tokens_are_the_exact_samplers_with_log_probabilities_near_its_own(tuned, engine, int8, questions):
    params = nnx.state(tuned.model, nnx.Param)
    exact, rounded = (each(params, questions, KEY, sampling=T1, group=4) for each in (engine, int8))
    np.testing.assert_array_equal(exact.overview_features, rounded.overview_features)
    written = tuned.rows.layout.written()
    same = np.cumprod(exact.replies.ids[:, written] == rounded.replies.ids[:, written], axis=1) > 0
    same &= exact.replies.target[:, written]  # until the first other token
    assert same.sum() > 0.9 * exact.replies.target.sum()
    gap = np.abs(exact.logprobs - rounded.logprobs)[same]
    assert 1e-4 < gap.mean() < 0.01
    assert gap.max() < 0.5


def test_nothing_recompiles_and_weights_are_made_once(tuned, int8, questions):
    compilations = []
    params = nnx.state(tuned.model, nnx.Param)
    weights = int8.weights(params)
    assert int8.weights(weights) is weights
    assert weights.reading is params  # float32 of a float32 model: no copy
    first = int8(weights, questions, KEY, sampling=T1, group=4)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    again = int8(params, questions, KEY, sampling=T1, group=4)
    np.testing.assert_array_equal(first.replies.ids, again.replies.ids)
    assert not compilations
    jax.jit(lambda x: x + 2.5)(jnp.ones(3)).block_until_ready()
    assert compilations  # the listener counts


@pytest.mark.slow
def test_a_step_corrects_the_gap_and_trains(tuned, questions):
    """The ratio to the trainer's own policy is 1 before the first update, though the sampler's probabilities are others."""
    config = GRPOConfig(prompts=8, group=4, rollout=INT8, objective=CAP, steps=2)
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        training = GRPO(config, load_model("nano-grpo", mesh=mesh).model, tuned.rows, mesh)
        asked = Asked(questions, training.send(tuned.rows.prompts(questions)), 0)
        updated, _ = training.update(training.play(asked))
        metrics = updated.metrics()
    assert 1e-4 < metrics["sampler_gap"] < 0.01
    assert metrics["ratio_max"] == 1
    assert metrics["update_ratio"] > 0
    assert np.isfinite(metrics["loss"])


def test_int8_without_a_correction_is_refused():
    with pytest.raises(UserError, match=r"rollout\.weights int8 needs objective\.importance_cap"):
        GRPOConfig(rollout=INT8)
    assert GRPOConfig(rollout=INT8, objective=CAP).rollout.weights == "int8"
    with pytest.raises(UserError, match="weights must be compute or int8, not 'int4'"):
        RolloutConfig(weights="int4")


@pytest.mark.slow
def test_meshes_and_samplers_write_the_same():
    found = result(start("rl/rollout/int8_on_mesh.py", 8))
    assert max(found["gaps"]) < 3e-5
    assert all(found["same"])
    assert found["shards"] == [[192, 192], [96, 96], [48, 48]]  # kernels and scales are cut alike
