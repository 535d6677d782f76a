"""The engine: one compilation, the same samples for the same seed, log-probabilities that the trainer reproduces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.optimizer import OptimizerConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from zoomearth_jax.rl.batches import GRPOBatch, row_batch
from zoomearth_jax.rl.grpo import learner_rows
from zoomearth_jax.rl.objective import group_advantages
from zoomearth_jax.rl.rewards.episodes import RewardSpec, episode_rewards
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.rl.state import init_state
from zoomearth_jax.rl.steps import make_grpo_step, row_logprobs
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.tools.zoom import Masked

GROUP = 4
T1 = SamplingConfig(temperature=1.0)


@pytest.fixture(scope="module")
def tuned():
    """The shipped policy's structure and a training state of it."""
    optimizer = OptimizerConfig(lr=1e-3, warmup=0, decay=False).build(1)
    return init_state(load_model("nano-grpo").model, optimizer, freeze_vision=True)


@pytest.fixture(scope="module")
def questions():
    return scene_questions("test", 1, 0, 6, global_share=0.3)


@pytest.fixture(scope="module")
def played(tuned, engine, questions):
    return engine(tuned[1].params, questions, jax.random.key(0), sampling=T1, group=GROUP)


def test_episodes_zoom_and_answer(played, questions, nano):
    assert len(played.episodes) == len(questions) * GROUP
    zoomed = [e for e in played.episodes if e.zoomed]
    assert len(zoomed) > 6
    for e in zoomed:
        assert e.window is not None
        assert e.box.frame == nano.rows.box_frame(questions[0].image.frame)
    assert any(e.answer for e in played.episodes)


def test_same_seed_same_samples(played, tuned, engine, questions):
    again = engine(tuned[1].params, questions, jax.random.key(0), sampling=T1, group=GROUP)
    np.testing.assert_array_equal(again.replies.ids, played.replies.ids)
    np.testing.assert_array_equal(again.logprobs, played.logprobs)
    other = engine(tuned[1].params, questions, jax.random.key(1), sampling=T1, group=GROUP)
    assert (other.replies.ids != played.replies.ids).any()


def test_nothing_recompiles_after_warm_up(tuned, engine, nano):
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    jax.jit(lambda x: x + 1.5)(jnp.ones(3)).block_until_ready()
    assert compilations  # the listener counts
    spec = RewardSpec()

    def play(start, key, temperature):
        questions = scene_questions("test", 2, start, 6, global_share=0.5)
        sampling = SamplingConfig(temperature=temperature)
        played = engine(tuned[1].params, questions, jax.random.key(key), sampling=sampling, group=GROUP)
        episode_rewards(spec, questions, played.episodes, nano.rows)

    play(0, 0, 1.0)
    compilations.clear()
    for number in range(1, 5):  # other scenes, other crops' shapes, other lengths, sampled and greedy
        play(6 * number, number, float(number % 2))
    assert not compilations


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_trainer_gives_the_sampler_log_probabilities(tuned, engine, questions, nano, temperature):
    graph, state = tuned
    sampling = SamplingConfig(temperature=temperature)
    played = engine(state.params, questions, jax.random.key(3), sampling=sampling, group=GROUP)
    model = nnx.merge(graph, state.trainable, state.frozen)
    mask = played.replies.target[:, nano.rows.layout.written()]
    # from the rollout's visual tokens, and from the pixels anew
    for tokens in ((played.overview_features, played.picture_features), (None, None)):
        batch = row_batch(played.prompts, played.replies, nano.model.config, *tokens)
        logp, _ = row_logprobs(model, batch, nano.rows.layout, temperature, nano.rows.banned_ids)
        assert np.abs(np.asarray(logp) - played.logprobs)[mask].max() < 1e-5
    assert (played.logprobs[~mask] == 0).all()


@pytest.mark.slow
def test_group_shared_prompt_equals_one_prompt_each(tuned, played, nano):
    """Gradients of the grouped batch equal those of a batch that repeats each prompt."""
    graph, state = tuned
    vision, layout = nano.model.config, nano.rows.layout
    repeated = jax.tree.map(lambda x: np.repeat(x, GROUP, axis=0), played.prompts)
    mask = played.replies.target[:, layout.written()]

    def loss(trainable, prompts):
        batch = row_batch(prompts, played.replies, vision)
        logp, _ = row_logprobs(nnx.merge(graph, trainable, state.frozen), batch, layout, 1.0, ())
        return (logp * mask.astype(np.float32)).sum() / float(mask.sum())

    shared, single = (jax.grad(loss)(state.trainable, prompts) for prompts in (played.prompts, repeated))
    for a, b in zip(jax.tree.leaves(shared), jax.tree.leaves(single), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-5


def test_vision_ids_are_never_sampled(played, nano):
    written = played.replies.ids[played.replies.target]
    assert not np.isin(written, nano.rows.banned_ids).any()


def test_masked_crop_changes_only_what_follows_it(tuned, engine, questions):
    shown, masked = (
        engine(tuned[1].params, questions, jax.random.key(0), tool=tool) for tool in (None, Masked(engine.tool))
    )
    assert [e.texts[0] for e in shown.episodes] == [e.texts[0] for e in masked.episodes]
    zoomed = [i for i, e in enumerate(shown.episodes) if e.zoomed]
    assert zoomed
    assert all(len(np.unique(masked.episodes[i].pictures[0])) == 1 for i in zoomed)


def test_an_untrained_model_is_an_outcome_not_an_exception(nano, questions):
    """Random parameters write gibberish: no valid box, no answer, truncated. Rewards are zero, nothing raises."""
    model = Qwen2_5_VL(nano.model.config, rngs=nnx.Rngs(7))
    played = RolloutEngine(model, nano.rows)(nnx.state(model, nnx.Param), questions, jax.random.key(0), sampling=T1)
    rewards = episode_rewards(RewardSpec(), questions, played.episodes, nano.rows)
    assert all(e.answer is None and not e.zoomed for e in played.episodes)
    assert any(e.truncated for e in played.episodes)
    assert (rewards["total"] == 0).all()


def test_grpo_step_raises_what_was_rewarded(tuned, played, questions, nano):
    """One small step makes what was rewarded likelier, against what was not."""
    graph, state = tuned[0], jax.tree.map(jnp.copy, tuned[1])  # a step gives its state's memory away
    optimizer = OptimizerConfig(lr=1e-4, warmup=0, decay=False).build(1)
    layout = nano.rows.layout
    rewards = np.tile([0.0, 1.0, 0.0, 1.0], len(questions))
    rows = learner_rows(played, nano.model.config, freeze_vision=True)
    batch = GRPOBatch(rows, played.logprobs, group_advantages(rewards, GROUP))
    reference = jax.tree.map(jnp.copy, state.trainable)
    objective = ObjectiveConfig(kl_weight=0.1)
    step = make_grpo_step(
        graph, optimizer, layout, temperature=1.0, banned_ids=nano.rows.banned_ids, objective=objective
    )
    before, frozen_before = (jax.tree.map(np.array, part) for part in (state.trainable, state.frozen))
    after, metrics = step(state, reference, batch)
    assert 0 < metrics["sampler_gap"] < metrics["sampler_gap_max"] < 5e-5
    change = jax.tree.map(lambda new, old: np.array(new) - old, after.trainable, before)
    assert metrics["update_ratio"] == pytest.approx(float(optax.tree.norm(change) / optax.tree.norm(before)), rel=1e-3)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)  # the policy is still the reference
    assert jax.tree.all(jax.tree.map(np.array_equal, frozen_before, after.frozen))
    model = nnx.merge(graph, after.trainable, after.frozen)
    logp, _ = row_logprobs(model, batch.rows, layout, 1.0, nano.rows.banned_ids)
    mask = played.replies.target[:, layout.written()]
    gain = ((np.asarray(logp) - played.logprobs) * mask).sum(1) / mask.sum(1)
    assert (batch.advantages * gain).mean() > 0.01


def test_a_question_that_does_not_fit_stops_before_anything_runs(tuned, engine, questions):
    long = dataclasses.replace(questions[0], text="why " * 200)
    with pytest.raises(UserError, match=r"--layout\.prompt-len"):
        engine(tuned[1].params, [long], jax.random.key(0))
