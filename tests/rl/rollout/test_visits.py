"""Turns in several visits of the host: the same episodes, rows left out once they stop, crops read meanwhile."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from flax import nnx

from tests.processes import result, start
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from zoomearth_jax.rl.batches import row_batch
from zoomearth_jax.rl.policy import group_places
from zoomearth_jax.rl.rollout import engine as rollout
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.rl.rollout.programs import RolloutPrograms
from zoomearth_jax.rl.rollout.scored import play_scored, send_parts
from zoomearth_jax.rl.steps import row_logprobs
from zoomearth_jax.runs.models import load_model

GROUP = 4
T1 = SamplingConfig(temperature=1.0)
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def questions():
    return scene_questions("test", 1, 0, 4, global_share=0.5)


@pytest.fixture(scope="module")
def params():
    return nnx.state(load_model("nano-grpo").model, nnx.Param)


@pytest.fixture(scope="module")
def whole(engine, params, questions):
    """Each turn in one visit."""
    return engine(params, questions, KEY, sampling=T1, group=GROUP)


@pytest.fixture(scope="module")
def short(nano):
    """An engine that looks at its rows every three tokens, leaves half of them out as soon as it can, and has seven more slots
    each time that a turn has filled those that it has."""
    engine = RolloutEngine(nano.model, nano.rows, config=RolloutConfig(visit=3, bucket=7))
    engine.events = []
    for name in ("narrow", "go_on", "widen", "grow"):
        program = getattr(engine.programs, name)

        def told(*args, name=name, program=program, **kwargs):
            engine.events.append(name)
            return program(*args, **kwargs)

        setattr(engine.programs, name, told)
    return engine


@pytest.fixture(scope="module")
def in_visits(short, params, questions):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "LEAST_ROWS", 2)
        short(params, questions, KEY, sampling=T1, group=GROUP)  # compiles
        short.events.clear()
        compilations = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
        )
        crop = short.rows.crop
        patch.setattr(short.rows, "crop", lambda *args: (short.events.append("crop"), crop(*args))[1])
        played = short(params, questions, KEY, sampling=T1, group=GROUP)
        return played, list(short.events), list(compilations)


def test_visits_and_rows_left_out_change_nothing(in_visits, whole):
    played, events, _ = in_visits
    assert events.count("narrow") == events.count("widen") >= 2
    np.testing.assert_array_equal(played.replies.ids, whole.replies.ids)
    np.testing.assert_array_equal(played.replies.target, whole.replies.target)
    assert np.abs(played.logprobs - whole.logprobs).max() < 1e-5
    assert played.episodes == whole.episodes


def test_slots_come_bucket_by_bucket(in_visits, short):
    events, first = in_visits[1], short.rows.layout.turn_lens[0]
    assert short.programs.buckets(first) == {7: 6, 14: 6, 20: 7}
    assert events.count("grow") >= 2
    assert "grow" in events[: events.index("widen")]  # while rows are left out


@pytest.mark.parametrize(
    ("visit", "bucket", "length", "want"),
    [
        (32, 128, 640, {128: 128, 256: 128, 384: 128, 512: 128, 640: 127}),
        (32, 128, 20, {20: 19}),
        (32, 0, 100, {100: 99}),
        (32, 16, 100, {32: 32, 64: 32, 96: 32, 100: 3}),
        (48, 128, 257, {128: 96, 256: 144, 257: 16}),
        (1, 1, 3, {1: 1, 3: 1}),
        (32, 128, 1, {1: 0}),
    ],
)
def test_buckets_hold_what_a_visit_writes(nano, visit, bucket, length, want):
    programs = RolloutPrograms(
        nano.model, nano.rows.layout, nano.rows.tokens, config=RolloutConfig(visit=visit, bucket=bucket)
    )
    assert programs.buckets(length) == want
    assert sum(want.values()) == length - 1


def test_nothing_compiles_once_the_shapes_are_known(in_visits):
    assert not in_visits[2]


def test_crops_are_read_while_other_rows_write_on(in_visits):
    events = in_visits[1]
    assert "go_on" in events[events.index("crop") :]


def test_without_pictures_there_is_no_second_turn(nano, questions, monkeypatch):
    model = Qwen2_5_VL(nano.model.config, rngs=nnx.Rngs(7))
    engine = RolloutEngine(model, nano.rows)
    monkeypatch.setattr(engine.programs, "append", None)
    played = engine(nnx.state(model, nnx.Param), questions, KEY, group=2)
    assert not any(e.zoomed for e in played.episodes)
    assert played.picture_features.shape == (len(questions) * 2, *played.overview_features.shape[1:])
    assert not np.asarray(played.picture_features).any()
    assert not played.replies.target[:, nano.rows.layout.turn_lens[0] :].any()


def test_an_oracle_decides_on_crops(nano, questions):
    """A policy that writes gibberish sees whole images where the question has a box, and nothing elsewhere."""
    model = Qwen2_5_VL(nano.model.config, rngs=nnx.Rngs(7))
    engine = RolloutEngine(model, nano.rows, config=RolloutConfig(crop_gate="oracle"))
    played = engine(nnx.state(model, nnx.Param), questions, KEY)
    assert {q.box is None for q in questions} == {True, False}
    for question, e in zip(questions, played.episodes, strict=True):
        frame = question.image.frame
        assert e.window == (None if question.box is None else Box(0, 0, frame.width, frame.height, frame))
        assert e.zoomed == (question.box is not None)


def test_an_oracle_leaves_valid_boxes_alone(nano, params, whole, questions):
    engine = RolloutEngine(nano.model, nano.rows, config=RolloutConfig(crop_gate="oracle"))
    played = engine(params, questions, KEY, sampling=T1, group=GROUP)
    asked = [q for q in questions for _ in range(GROUP)]
    same = [(a, b) for q, a, b in zip(asked, played.episodes, whole.episodes, strict=True) if q.box and b.zoomed]
    assert same
    assert all(a.window == b.window and a.texts[1:] == b.texts[1:] for a, b in same)


def test_retokenised_text_is_what_goes_on(nano, params, whole, questions, monkeypatch):
    config = RolloutConfig(turn_ids="retokenised")
    engine = RolloutEngine(nano.model, nano.rows, config=config)
    played = engine(params, questions, KEY, sampling=T1, group=GROUP)
    zoomed = np.array([e.zoomed for e in whole.episodes])
    assert zoomed.any()
    # where the tokenizer writes the text as it was sampled only its stop token goes, though the cache was made anew
    first = nano.rows.layout.turn(0)
    valid, stopped = whole.replies.valid, np.isin(whole.replies.ids, nano.rows.stop_ids) & whole.replies.target
    bare = np.where(valid, whole.replies.ids, nano.rows.pad_id)
    same = zoomed & (played.replies.ids[:, first] == bare[:, first]).all(axis=1)
    assert same.sum() > 2
    np.testing.assert_array_equal(played.replies.ids[same, first.stop :], whole.replies.ids[same, first.stop :])
    np.testing.assert_array_equal(played.replies.valid[same], valid[same])
    trained, sampled = (x.replies.target[:, first] for x in (played, whole))
    assert stopped[same][:, first].any()
    np.testing.assert_array_equal(trained[same], (sampled & ~stopped[:, first])[same])
    np.testing.assert_array_equal(trained[~zoomed], sampled[~zoomed])
    assert np.abs(played.logprobs - whole.logprobs)[same].max() < 1e-5
    # with another text in its place the second turn reads that
    monkeypatch.setattr(engine, "rows", other := nano_rows_that_say(nano.rows, "<think>no</think>"))
    changed = engine(params, questions, KEY, sampling=T1, group=GROUP)
    said = nano.rows.encode("<think>no</think>")
    assert changed.replies.ids[zoomed][:, : len(said)].tolist() == [said] * zoomed.sum()
    assert (changed.replies.target[zoomed][:, first].sum(axis=1) == len(said)).all()
    assert other is engine.rows
    assert np.abs(changed.logprobs - whole.logprobs)[zoomed][:, first.stop :].max() > 1e-3


def nano_rows_that_say(rows, text):
    """The same rows, which encode everything as `text`."""
    said = rows.encode(text)

    class Other(type(rows)):
        def encode(self, _):
            return said

    other = Other.__new__(Other)
    other.__dict__.update(rows.__dict__)
    return other


def test_retokenised_ids_need_the_released_mask():
    with pytest.raises(UserError, match="mask reference"):
        GRPOConfig(rollout=RolloutConfig(turn_ids="retokenised"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("crop_gate", "me"), ("turn_ids", "x"), ("crop", "x"), ("batches", 0), ("visit", 0), ("bucket", -1)],
)
def test_settings_are_checked(field, value):
    with pytest.raises(UserError, match=field):
        dataclasses.replace(RolloutConfig(), **{field: value})


@pytest.mark.slow
def test_parts_play_the_same_episodes_and_are_scored_meanwhile(engine, params, questions, whole, nano):
    playing, calls = threading.Event(), []
    play = type(engine).__call__

    class Watched:
        mesh, weights, send = None, engine.weights, engine.send

        def __call__(self, *args, **kwargs):
            calls.append("play")
            if len(calls) > 1:
                playing.set()
            return play(engine, *args, **kwargs)

    def score(asked, played):
        # the first part's rewards wait for the second to play
        assert playing.wait(60)
        assert len(asked) == 2
        return {"total": np.arange(len(played.episodes), dtype=float)}

    looks = send_parts(engine, nano.rows.prompts(questions), 2)
    played, rewards = play_scored(Watched(), params, questions, looks, KEY, sampling=T1, group=GROUP, score=score)
    assert rewards.result()["total"].tolist() == [*range(8), *range(8)]
    np.testing.assert_array_equal(played.replies.ids, whole.replies.ids)
    assert played.episodes == whole.episodes
    zoomed = [e.zoomed for e in whole.episodes]
    assert np.abs(np.asarray(played.picture_features) - np.asarray(whole.picture_features))[zoomed].max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_slots_that_do_not_exist_are_left_out_of_the_update(nano, whole, remat):
    """The same log-probabilities and gradients from as many rows as the fullest question fills."""
    model = load_model("nano-grpo", ComputeConfig(remat=remat)).model
    graph, params = nnx.split(model)
    tokens = whole.overview_features, whole.picture_features
    target = whole.replies.target[:, nano.rows.layout.written()].astype(np.float32)

    def loss(params, batch):
        logp, entropy = row_logprobs(nnx.merge(graph, params), batch, nano.rows.layout, 1.0, nano.rows.banned_ids)
        return ((logp + 0.1 * entropy) * target).sum() / target.sum(), logp * target

    every, some = (row_batch(whole.prompts, whole.replies, model.config, *tokens, parts=p) for p in (0, 16))
    need = whole.prompts.valid.sum(1) + whole.replies.valid.sum(1).reshape(len(whole.prompts.ids), -1).sum(1)
    slots = nano.rows.layout.prompt_len + GROUP * nano.rows.layout.reply_len
    unit = -(-slots // 16)
    assert every.places is None
    assert some.places.kept_AR.shape[1] == -(-need.max() // unit) * unit < slots
    (a, logp_a), (b, logp_b) = (jax.jit(jax.grad(loss, has_aux=True))(params, batch) for batch in (every, some))
    np.testing.assert_allclose(logp_a, logp_b, atol=1e-5)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


def test_full_rows_have_nothing_to_leave_out():
    full, none = np.ones((2, 8), bool), np.zeros((2, 8), bool)
    assert group_places(full, np.ones((4, 4), bool), 4) is None
    places = group_places(full, np.zeros((4, 4), bool), 4)
    np.testing.assert_array_equal(places.kept_AR, np.arange(8)[None].repeat(2, 0))
    np.testing.assert_array_equal(places.place_AS, [[*range(8), *[8] * 8]] * 2)
    assert (group_places(none, np.eye(4, dtype=bool), 4).kept_AR[:, :2] == [[8, 13], [10, 15]]).all()


def test_rows_stay_on_their_devices():
    assert result(start("rl/rollout/rows_on_mesh.py", 8)) == "ok"
