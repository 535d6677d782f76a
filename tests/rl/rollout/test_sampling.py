"""Sampling by hand: what the filters leave, in which order; draws that depend only on their seed; end tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.evaluation.play import play
from zoomearth_jax.rl.policy import Segment, reply_hidden
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.rl.rollout.sampling import filtered_logits, mark_seen, row_keys, sample
from zoomearth_jax.runs.models import load_model

T1 = SamplingConfig(temperature=1.0)
PROBS = [0.2, 0.5, 0.0625, 0.2, 0.0375]  # two are tied


def kept(probs, **filters) -> set[int]:
    out = filtered_logits(jnp.log(jnp.array([probs])), SamplingConfig(**filters))
    return set(np.flatnonzero(np.isfinite(out[0])))


def draw(logits, count=1, temperature=1.0, banned_ids=(), seen=None, seed=0, **filters):
    """`count` tokens from one distribution, with their log-probabilities."""
    keys, _ = row_keys(jax.random.key(seed), np.arange(count, dtype=np.uint32), 2)
    logits_BV = jnp.broadcast_to(jnp.array(logits, jnp.float32), (count, len(logits)))
    seen_BV = None if seen is None else jnp.broadcast_to(jnp.array(seen), logits_BV.shape)
    ids, logps = sample(logits_BV, keys, temperature, banned_ids, SamplingConfig(**filters), seen_BV)
    return np.asarray(ids), np.asarray(logps)


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {0, 1, 3}),  # a tie with the last one kept
        ({"top_k": 3}, {0, 1, 3}),
        ({"top_k": 4}, {0, 1, 2, 3}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 1e-6}, {1}),
        ({"top_p": 0.5}, {1}),  # the best holds just enough
        ({"top_p": 0.51}, {0, 1, 3}),  # one of the tied would do
        ({"top_p": 0.89}, {0, 1, 3}),
        ({"top_p": 0.91}, {0, 1, 2, 3}),
        ({"top_p": 0.99}, {0, 1, 2, 3, 4}),
        ({"top_k": 2, "top_p": 0.55}, {1}),  # 0.5 of the 0.9 that top-k leaves is more than 0.55
    ],
    ids=str,
)
def test_what_top_k_and_top_p_keep(filters, ids):
    assert kept(PROBS, **filters) == ids


def test_what_is_kept_keeps_its_logits():
    logits = jnp.log(jnp.array([PROBS]))
    out = np.asarray(filtered_logits(logits, SamplingConfig(top_k=4, top_p=0.89)))
    np.testing.assert_array_equal(out[0, [0, 1, 3]], logits[0, jnp.array([0, 1, 3])])
    assert (out[0, [2, 4]] == -np.inf).all()


def test_repetition_penalty_lowers_what_the_row_holds():
    seen = jnp.array([[True, True, True, False, False]])
    out = filtered_logits(jnp.array([[3.0, -3.0, 0.0, 3.0, -3.0]]), SamplingConfig(repetition_penalty=2.0), seen)
    np.testing.assert_allclose(out[0], [1.5, -6.0, 0.0, 3.0, -3.0])


def test_the_penalty_comes_before_top_k():
    assert draw([3.0, 2.0], 50, seen=[True, False], repetition_penalty=2.0, top_k=1)[0].tolist() == [1] * 50


def test_padding_is_not_seen():
    ids, valid = jnp.array([[1, 2, 2, 0, 0], [3, 0, 0, 4, 4]]), jnp.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 1]], bool)
    seen = mark_seen(jnp.zeros((2, 5), bool), ids, valid)
    assert [np.flatnonzero(row).tolist() for row in seen] == [[1, 2], [3, 4]]
    again = mark_seen(seen, jnp.array([[4], [1]]), jnp.array([[True], [False]]))  # nothing is forgotten
    assert [np.flatnonzero(row).tolist() for row in again] == [[1, 2, 4], [3, 4]]
    assert mark_seen(None, ids, valid) is None


def test_greedy_takes_the_best_after_penalty_and_bans():
    logits, seen = [5.0, 4.0, 3.0, 1.0], [False, True, False, False]
    assert (draw(logits, 20, 0.0)[0] == 0).all()
    assert (draw(logits, 20, 0.0, banned_ids=(0,))[0] == 1).all()
    ids, logps = draw(logits, 20, 0.0, banned_ids=(0,), seen=seen, repetition_penalty=2.0, top_k=3, top_p=0.9)
    assert (ids == 2).all()
    np.testing.assert_allclose(logps, jax.nn.log_softmax(jnp.array(logits[1:]))[1], rtol=1e-6)  # the policy's, at 1


@pytest.mark.parametrize("filters", [{}, {"top_k": 4}, {"top_p": 0.9}, {"top_k": 4, "top_p": 0.9}], ids=str)
def test_banned_ids_are_never_drawn(filters):
    logits = np.zeros(5)
    logits[[1, 3]] = 9.0
    ids, logps = draw(logits, 2000, 1.5, banned_ids=(1, 3), **filters)
    assert set(ids) == {0, 2, 4}
    np.testing.assert_allclose(logps, -np.log(3), rtol=1e-6)


@pytest.mark.parametrize(
    ("temperature", "filters"), [(1.0, {}), (0.5, {}), (2.0, {"top_k": 4}), (1.0, {"top_p": 0.7})], ids=str
)
def test_frequencies_are_the_probabilities(temperature, filters):
    """Chi-square over the ids that are left, below its 1 - 1e-6 quantile for up to 5 degrees of freedom."""
    logits, count = np.log([0.3, 0.25, 0.2, 0.15, 0.06, 0.04]), 20_000
    ids, logps = draw(logits, count, temperature, **filters)
    tempered = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    left = {"top_k": [0, 1, 2, 3], "top_p": [0, 1, 2]}.get(next(iter(filters), None), range(6))
    expected = np.zeros(6)
    expected[left] = tempered[left] / tempered[left].sum() * count
    observed = np.bincount(ids, minlength=6)
    assert (observed[expected == 0] == 0).all()
    assert ((observed - expected)[left] ** 2 / expected[left]).sum() < 35.9
    np.testing.assert_allclose(logps, np.log(tempered)[ids], rtol=1e-5)  # before the filters: what the learner computes


def test_a_key_belongs_to_its_seed_and_turn():
    seeds = np.array([5, 0, 7, 5], np.uint32)
    keys = jax.random.key_data(row_keys(jax.random.key(0), seeds, 2))
    alone = jax.random.key_data(row_keys(jax.random.key(0), seeds[2:3], 2))
    np.testing.assert_array_equal(keys[:, 2:3], alone)
    assert len(np.unique(np.asarray(keys).reshape(8, -1), axis=0)) == 6  # three seeds, two turns
    more = jax.random.key_data(row_keys(jax.random.key(0), seeds, 4))
    np.testing.assert_array_equal(more[:2], keys)  # whatever the number of turns


@pytest.fixture(scope="module")
def tuned():
    """The parameters of the shipped policy, which the session's engine can play."""
    return nnx.state(load_model("nano-grpo").model, nnx.Param)


@pytest.fixture(scope="module")
def questions():
    return scene_questions("test", 1, 0, 6, global_share=0.3)


def said(episodes) -> list[tuple]:
    return [(e.texts, e.answer) for e in episodes]


@pytest.mark.slow
def test_an_episode_depends_on_its_question_and_seed_alone(tuned, engine, questions):
    key, seeds = jax.random.key(0), [3, 1, 4, 15, 9, 2]
    together = said(engine(tuned, questions, key, sampling=T1, seeds=seeds).episodes)
    order = [4, 2, 0, 5, 3, 1]
    turned = engine(tuned, [questions[i] for i in order], key, sampling=T1, seeds=[seeds[i] for i in order])
    assert said(turned.episodes) == [together[i] for i in order]
    alone = engine(tuned, questions[3:4], key, sampling=T1, seeds=[15]).episodes
    assert said(alone) == [together[3]]
    of_groups = [30 * other + seed for seed in seeds for other in (1, 0, 2, 3)]
    grouped = said(engine(tuned, questions, key, sampling=T1, group=4, seeds=of_groups).episodes)
    assert grouped[1::4] == together
    assert grouped[::4] != together


def test_evaluation_does_not_depend_on_the_batch_size(tuned, engine, questions):
    key, seven = jax.random.key(2), [*questions, questions[3]]
    one, other = (play(engine, tuned, seven, key, sampling=T1, tool=engine.tool, batch_size=size) for size in (6, 1))
    assert said(one) == said(other)
    assert said(one)[3] != said(one)[6]  # the same question under another seed


def drawn_again(model, params, played, key, sampling, banned_ids, layout):
    """Draws every slot of the replies from whole rows, with what is seen counted anew for each: [B, reply_len]."""
    prompts, replies = played.prompts, played.replies
    prompt = Segment(prompts.ids, prompts.valid, played.overview_features, prompts.views.grids[:, None])
    reply = Segment(replies.ids, replies.valid, played.picture_features, replies.pictures.grids[:, None])
    policy = nnx.merge(nnx.graphdef(model), params)
    logits_BTV = np.asarray(policy.decoder.logits(reply_hidden(policy, prompt, reply)))
    batch, length, vocabulary = logits_BTV.shape
    ids, valid = (np.concatenate([getattr(prompts, n), getattr(replies, n)], axis=1) for n in ("ids", "valid"))
    turns = row_keys(key, np.arange(batch, dtype=np.uint32), layout.num_turns)
    draw, drawn = jax.jit(sample, static_argnums=(3, 4)), []
    for slot in range(length):
        before = prompts.ids.shape[1] + slot
        seen = np.zeros((batch, vocabulary), bool)
        for row in range(batch):
            seen[row, ids[row, :before][valid[row, :before]]] = True
        turn = int(slot >= layout.turn(1).start)
        step = slot - layout.turn(turn).start
        keys = jax.vmap(jax.random.fold_in, (0, None))(turns[turn], max(step, 0))
        drawn.append(draw(logits_BTV[:, slot], keys, sampling.temperature, banned_ids, sampling, seen)[0])
    return np.stack(drawn, axis=1)


@pytest.mark.slow
def test_filters_in_both_turns_and_no_compilation_for_another_temperature(tuned, engine, questions, nano):
    """The penalty counts prompt, turns and pictures; each turn has a key; temperatures share their programs."""
    sampling = SamplingConfig(temperature=1.0, top_k=50, top_p=0.99, repetition_penalty=1.5)
    key, greedy = jax.random.key(0), dataclasses.replace(sampling, temperature=0.0)
    engine(tuned, questions, key, sampling=greedy)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    played = engine(tuned, questions, key, sampling=sampling)
    assert not compilations
    assert sum(e.zoomed for e in played.episodes) > 1
    rows = nano.rows
    again = drawn_again(nano.model, tuned, played, key, sampling, rows.banned_ids, rows.layout)
    assert compilations  # the listener counts
    target = played.replies.target
    np.testing.assert_array_equal(again[target], played.replies.ids[target])


def test_any_end_token_stops_a_row(tuned, engine, nano, questions):
    """With </answer> as a third one, answers stop there and looks still at <|im_end|>; it is a target, but not context."""
    (end,) = nano.rows.encode("</answer>")
    rows = RowBuilder(nano.rows.tokenizer, nano.rows.episode, 28, {"eos_token_id": [end]})
    before = engine(tuned, questions, jax.random.key(0)).replies
    after = RolloutEngine(nano.model, rows)(tuned, questions, jax.random.key(0))
    assert any(e.zoomed for e in after.episodes)
    assert not any(e.truncated or "</answer>" in "".join(e.texts) for e in after.episodes)
    assert not (after.replies.valid & (after.replies.ids == end)).any()
    for old, was_written, ids, target in zip(
        before.ids, before.target, after.replies.ids, after.replies.target, strict=True
    ):
        assert ids[target].tolist() == old[was_written].tolist()[:-1]  # all but the last <|im_end|>
        assert ids[target][-1] == end
