"""Ways of showing crops: what each shows, that it is reproducible, and what the records say of it."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.evaluation.baselines import CROPS
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.tools.tool import View
from zoomearth_jax.tools.zoom import MASK_LEVEL, Zoom

BOX = '<think>a</think>[{"bbox_2d": [10, 20, 30, 40], "label": "b"}]'
ANSWER = "<answer>red</answer>"
KEY, T0 = jax.random.key(0), SamplingConfig()


@pytest.fixture(scope="module")
def tuned():
    return load_model("nano-grpo")


@pytest.fixture(scope="module")
def questions():
    return scene_questions("test", 5, 0, 6, global_share=0.3)


@pytest.fixture(scope="module")
def engine(tuned):
    return RolloutEngine(tuned.model, tuned.rows)


@pytest.fixture(scope="module")
def play(tuned, engine, questions):
    """Plays in a way of showing crops; each way once."""
    params, played = nnx.state(tuned.model, nnx.Param), {}

    def one(name):
        if name not in played:
            tool = CROPS[name](engine.tool, tuned.rows)
            played[name] = engine(params, questions, KEY, sampling=T0, tool=tool)
        return played[name]

    return one


def test_the_ways_are_known_by_name():
    assert set(CROPS) == {"shown", "masked", "none", "oracle", "random"}


def test_first_turns_are_the_same_in_all_ways(play):
    first = [episode.turns[0].text for episode in play("shown").episodes]
    assert len(set(first)) > 1
    for name in CROPS:
        assert [episode.turns[0].text for episode in play(name).episodes] == first


@pytest.mark.slow
def test_none_gives_the_next_turn_without_a_picture(play, tuned):
    """The turn is written after the marks of a picture alone, as one forward pass over those ids says."""
    shown, none = play("shown"), play("none")
    zoomed = [i for i, episode in enumerate(shown.episodes) if episode.zoomed]
    assert zoomed
    rows, layout = tuned.rows, tuned.rows.layout
    for i in zoomed:
        episode, replies = none.episodes[i], none.replies
        assert len(episode.turns) == 2
        assert episode.turns[1].text
        assert not episode.zoomed
        assert episode.window is None
        assert episode.box == shown.episodes[i].box
        slots = layout.picture(0)
        assert replies.ids[i, slots][replies.valid[i, slots]].tolist() == [rows.look_id, rows.seen_id]
        valid = replies.valid[i] | replies.target[i]
        valid[layout.turn(0)] &= ~np.isin(replies.ids[i, layout.turn(0)], rows.stop_ids)
        ids = np.concatenate([none.prompts.ids[i][none.prompts.valid[i]], replies.ids[i][valid]])
        written = replies.ids[i, layout.turn(1)][replies.target[i, layout.turn(1)]]
        images = tuned.model.config.prepare(*jax.tree.map(lambda x, i=i: x[i : i + 1], none.prompts.views))
        hidden, _, _ = tuned.model.segment(
            ids[None], np.ones((1, len(ids)), np.int32), tuned.model.encode_views(images), images.grids
        )
        logits = np.array(tuned.model.logits(hidden))[0, len(ids) - len(written) - 1 : -1]
        logits[:, list(rows.banned_ids)] = -np.inf
        np.testing.assert_array_equal(logits.argmax(-1), written)


def test_masked_is_grey_in_the_same_place(play):
    for plain, masked in zip(play("shown").episodes, play("masked").episodes, strict=True):
        assert masked.window == plain.window
        assert all((picture == MASK_LEVEL).all() for picture in masked.pictures)


def test_oracle_shows_the_reference(play, questions, tuned):
    frames = [question.image.frame for question in questions]
    for i, episode in enumerate(play("oracle").episodes):
        box = questions[i].box
        if box is None:
            assert episode == play("shown").episodes[i]
            continue
        assert episode.window == tuned.rows.window(box, frames[i])
        np.testing.assert_array_equal(
            episode.pictures[0], tuned.rows.crop(questions[i].image, tuned.rows.window(box, frames[i]))
        )
    with_box = next(question for question in questions if question.box is not None)
    tool = CROPS["oracle"](Zoom(tuned.rows), tuned.rows)
    answered = tool.request(ANSWER, View(with_box, Frame(112, 112)))
    assert answered.wanted
    assert answered.reason == "absent"
    assert answered.box is None
    later = View(with_box, Frame(112, 112), (answered,))
    assert tool.request(BOX, later) == Zoom(tuned.rows).request(BOX, later)  # asks for itself


def test_random_follows_from_the_seed_only(play, questions, tuned, engine):
    shown, other = play("shown"), play("random")
    windows = [(a.window, b.window) for a, b in zip(shown.episodes, other.episodes, strict=True) if a.zoomed]
    assert windows
    for named, drawn in windows:
        assert _size(named) == _size(drawn)
        assert drawn.x1 >= 0
        assert drawn.y1 >= 0
        assert drawn.x2 <= drawn.frame.width
        assert drawn.y2 <= drawn.frame.height
    assert any(named != drawn for named, drawn in windows)
    assert [e.box for e in other.episodes] == [e.box for e in shown.episodes]
    params, tool = nnx.state(tuned.model, nnx.Param), CROPS["random"](engine.tool, tuned.rows)
    backwards = engine(params, questions[::-1], KEY, sampling=T0, seeds=range(6)[::-1], tool=tool)
    assert [e.window for e in backwards.episodes[::-1]] == [e.window for e in other.episodes]


def test_random_places_are_everywhere_inside(questions, tuned):
    tool, view = CROPS["random"](Zoom(tuned.rows), tuned.rows), View(questions[0], Frame(112, 112))
    named = Zoom(tuned.rows).request(BOX, view).window
    drawn = [tool.request(BOX, view._replace(seed=seed)).window for seed in range(300)]
    frame = questions[0].image.frame
    for start, room in (
        ([box.x1 for box in drawn], frame.width - _size(named)[0]),
        ([box.y1 for box in drawn], frame.height - _size(named)[1]),
    ):
        assert min(start) >= 0
        assert max(start) <= room
        assert np.mean(start) == pytest.approx(room / 2, rel=0.15)
    assert drawn[0] == tool.request(BOX, view).window
    second = view._replace(earlier=(Zoom(tuned.rows).request(BOX, view),))
    assert tool.request(BOX, second).window != drawn[0]
    assert tool.request(ANSWER, view) == "absent"


def _size(box: Box) -> tuple[float, float]:
    return box.x2 - box.x1, box.y2 - box.y1


def test_the_whole_image_has_one_place(questions, tuned):
    whole = dataclasses.replace(questions[0], image=dataclasses.replace(questions[0].image, side=100))
    tool, view = CROPS["random"](Zoom(tuned.rows), tuned.rows), View(whole, Frame(112, 112), seed=3)
    assert tool.request(BOX, view).window.corners == (0, 0, 100, 100)
