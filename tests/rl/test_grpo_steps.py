"""GRPO's update steps on rows of the shipped model: microbatches, minibatches, the old policy by the trainer, the masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.models.presets import preset
from zoomearth_jax.rl.batches import GRPOBatch, row_batch
from zoomearth_jax.rl.grpo import minibatches, sampled_kl, update_metrics
from zoomearth_jax.rl.state import init_state
from zoomearth_jax.rl.steps import make_grpo_step, make_scorer, scored_slots
from zoomearth_jax.runs.models import load_model

PROMPTS, GROUP = 4, 2


@pytest.fixture(scope="module")
def start(nano):
    """The model's structure and a training state."""
    return init_state(load_model("nano").model, optax.sgd(1.0), freeze_vision=True)


@pytest.fixture(scope="module")
def replies(nano):
    """Two replies to each question: the reference's, and one that stops halfway; one row has no token of the policy."""
    questions = scene_questions("sft", 3, 0, PROMPTS, global_share=0.5)
    asked = [q for q in questions for _ in range(GROUP)]
    replies = nano.rows.reference_replies(asked)
    replies.target[1::2, 5:] = False
    replies.target[3] = False
    assert {0, 16} <= set(replies.pictures.grids.prod(1).tolist())  # with and without a crop
    return nano.rows.prompts(questions), replies


@pytest.fixture(scope="module")
def batch(nano, start, replies):
    """The sampler's log-probabilities are off by noise; those of the policy are scored in microbatches."""
    rows = jax.device_put(row_batch(*replies, nano.model.config))
    rng = np.random.default_rng(0)
    scored = make_scorer(start[0], nano.rows.layout, **settings(nano, accumulate=2))(*start[1][:2], rows)
    sampler = np.asarray(scored) + rng.normal(size=scored.shape).astype(np.float32) * 0.5
    return GRPOBatch(rows, sampler, rng.normal(size=len(sampler)).astype(np.float32), old_logp=scored)


def settings(nano, accumulate=1, **objective):
    objective = ObjectiveConfig(**{"kl_weight": 0.0, **objective})
    banned = nano.rows.banned_ids
    return {"temperature": 0.8, "banned_ids": banned, "objective": objective, "accumulate": accumulate}


def stepped(nano, start, batch, **more):
    graph, state = start[0], jax.tree.map(jnp.copy, start[1])  # a step gives its state's memory away
    step = make_grpo_step(graph, optax.sgd(1.0), nano.rows.layout, **settings(nano, **more))
    return step(state, None, batch)


@pytest.mark.slow
def test_microbatches_and_a_scored_old_policy_change_nothing(nano, start, batch):
    """Rows of different lengths, one without a token, a dropped group: means are over the whole batch. In a first step the
    old policy is the current one, whether it was scored or not."""
    variant = {"aggregation": "token", "importance_cap": 1.2, "entropy_weight": 0.1}
    batch = batch._replace(kept=np.repeat([True, False, True, True], GROUP))
    want_state, want = stepped(nano, start, batch._replace(old_logp=None), **variant)
    state, got = stepped(nano, start, batch, accumulate=2, **variant)
    for name in want:
        assert float(got[name]) == pytest.approx(float(want[name]), rel=2e-4, abs=1e-6), name
    assert float(want["ratio_max"]) == 1
    assert 0 < float(want["importance_truncated"]) < 1
    for new, other, old in zip(
        *map(jax.tree.leaves, (want_state.trainable, state.trainable, start[1].trainable)), strict=True
    ):
        assert np.abs(new - other).max() <= 1e-3 * np.abs(new - old).max() + 1e-6


def test_the_reference_mask_takes_the_crop_s_tokens(nano, start, replies, batch):
    """On policy all ratios are 1, so that with a constant divisor rows weigh by how many tokens the mask has."""
    mask = replies[1].valid | replies[1].target
    assert (mask.sum(1) - replies[1].target.sum(1)).max() > 16  # the crop's
    _, metrics = stepped(nano, start, batch._replace(old_logp=None), mask="reference", aggregation="constant")
    want = -(batch.advantages * mask.sum(1)).sum() / mask.size
    assert float(metrics["loss"]) == pytest.approx(want, abs=1e-6)
    assert 0 < float(metrics["grad_norm"]) < np.inf


def test_the_crop_is_what_the_masks_differ_by():
    layout = preset("nano")[1].layout(28)
    all_slots, own = scored_slots(layout, "reference"), scored_slots(layout, "sampled")
    crop = layout.picture(0)
    assert set(all_slots) - set(own) == set(range(crop.start, crop.stop))


def test_minibatches_are_whole_groups(batch):
    parts = minibatches(batch._replace(advantages=np.arange(PROMPTS * GROUP), old_logp=None), 2)
    assert [part.advantages.tolist() for part in parts] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    ids = [np.asarray(part.rows.prompt_ids) for part in parts]
    np.testing.assert_array_equal(np.concatenate(ids), np.asarray(batch.rows.prompt_ids)[[0, 2, 1, 3]])
    assert all(part.kept is None and part.old_logp is None for part in parts)


def test_metrics_of_an_update_are_those_of_its_last_pass():
    """Means over the last pass, maxima stay maxima, the gap is the first step's; what broke is seen."""

    def steps(*losses):
        finite = np.float32(1)
        return [
            {"loss": np.float32(x), "grad_norm": finite, "update_ratio": finite, "ratio_max": x, "sampler_gap": x}
            for x in losses
        ]

    metrics = update_metrics(steps(0, 1, 2, 3, 4, 5), 2)
    assert (metrics["loss"], metrics["ratio_max"], metrics["sampler_gap"]) == (4, 5, 0)
    assert np.isnan(update_metrics(steps(0, np.nan, 2, 3), 2)["loss"])


def test_the_kl_of_episodes_by_hand():
    """Summed over an episode's tokens, for the reward, and a token, for the metric."""

    class Played:
        replies = type("Replies", (), {"target": np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)})
        logprobs = np.log(np.array([[0.5, 0.4, 0.1], [0.2, 0.1, 0.1], [0.1, 0.1, 0.1]]))

    ref = np.log(np.array([[0.25, 0.8, 0.7], [0.1, 0.7, 0.7], [0.7, 0.7, 0.7]]))
    total, token = sampled_kl("k1", Played, ref, np.arange(3))
    np.testing.assert_allclose(total, [np.log(2) - np.log(2), np.log(2), 0], atol=1e-6)
    np.testing.assert_allclose(token, [0, np.log(2), 0], atol=1e-6)
    total, token = sampled_kl("k2", Played, ref, np.arange(3))
    np.testing.assert_allclose(total, np.log(2) ** 2 / 2 * np.array([2, 1, 0]), atol=1e-6)
    np.testing.assert_allclose(token, np.log(2) ** 2 / 2 * np.array([1, 1, 0]), atol=1e-6)
