"""Episodes as the authors' release evaluates: boxes at a longest side of 512, a crop after every box."""

import jax
import numpy as np
import pytest
from flax import nnx

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import ArrayImage
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.models.sharding import make_mesh
from zoomearth_jax.rl.grpo import GRPO
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.tools.tool import View
from zoomearth_jax.tools.zoom import Zoom

BOTH = '<think>a</think>[{"bbox_2d": [10, 20, 60, 90], "label": "b"}]<answer>red</answer>'
KEY, T1 = jax.random.key(3), SamplingConfig(temperature=1.0)


@pytest.fixture(scope="module")
def tuned():
    return load_model("nano-grpo")


@pytest.fixture(scope="module")
def questions():
    return scene_questions("test", 2, 0, 6, global_share=0.0)


def test_boxes_are_px_at_one_scale_for_both_axes(tuned):
    rows = tuned.rows.replaced(box_px=512, gate="box")
    frame = Frame(5000, 2000)
    assert rows.box_frame(frame) == Frame(512.0, 2000 * 512 / 5000)
    question = Question(ArrayImage(np.zeros((200, 500, 3), np.uint8)), "?", "red", "object")
    request = Zoom(rows).request(BOTH, View(question, rows.box_frame(question.image.frame)))
    scale = 500 / 512
    assert request.box.to(question.image.frame).corners == pytest.approx(
        [10 * scale, 20 * scale, 60 * scale, 90 * scale]
    )
    assert tuned.rows.box_frame(frame) == Frame(112, 56)  # whole tokens of 28 px, a scale for each axis


def test_the_gate_reads_boxes_beside_answers_or_not(tuned, questions):
    view = View(questions[0], Frame(112, 112))
    assert not Zoom(tuned.rows).request(BOTH, view).wanted
    assert Zoom(tuned.rows.replaced(gate="box")).request(BOTH, view).wanted


@pytest.fixture(scope="module")
def played(tuned, questions):
    """Rows with a smaller crop, and their episodes."""
    rows = tuned.rows.replaced(picture_px=84)
    engine = RolloutEngine(tuned.model, rows)
    return rows, engine(nnx.state(tuned.model, nnx.Param), questions, KEY, sampling=T1)


def test_crops_have_a_canvas_of_their_own(played):
    rows, episodes = played
    assert (rows.layout.view_tokens, rows.layout.picture_tokens) == (16, 9)
    assert episodes.replies.pictures.pixels.shape[1:] == (84, 84, 3)
    assert episodes.picture_features.shape[1] == 9 < episodes.overview_features.shape[1]
    assert any(e.zoomed for e in episodes.episodes)


class Scripted:
    """Rows that decode to given texts, one for each turn of the only question."""

    def __init__(self, rows, *texts):
        self._rows, self._texts = rows, iter(texts)

    def __getattr__(self, name):
        return getattr(self._rows, name)

    def decode(self, ids):
        return next(self._texts)


@pytest.mark.parametrize(
    ("second", "answer"),
    [("<answer>blue</answer>", "blue"), ("<answer></answer>", ""), ("nothing", "red"), ("", "red")],
)
def test_the_first_answer_counts_where_the_second_turn_has_none(tuned, questions, second, answer):
    rows = tuned.rows.replaced(gate="box")
    engine = RolloutEngine(tuned.model, rows)
    engine.rows = Scripted(rows, BOTH, second)
    played = engine(nnx.state(tuned.model, nnx.Param), questions[:1], KEY)
    (episode,) = played.episodes
    assert episode.zoomed
    assert episode.answer == answer
    read = played.replies.ids[0, : len(rows.encode(BOTH))].tolist()
    cut = rows.encode(BOTH.split("<answer>")[0])
    assert read[: len(cut)] == cut  # the second turn reads the first up to its answer
    assert not played.replies.valid[0, len(cut) : rows.layout.turn_lens[0]].any()
    assert episode.box.corners == Box(10, 20, 60, 90, Frame(112, 112)).corners


def test_without_the_gate_a_crop_follows_no_answer(tuned, questions):
    engine = RolloutEngine(tuned.model, tuned.rows)
    engine.rows = Scripted(tuned.rows, BOTH)
    (episode,) = engine(nnx.state(tuned.model, nnx.Param), questions[:1], KEY).episodes
    assert not episode.zoomed
    assert episode.answer == "red"


def test_an_empty_answer_is_an_answer(tuned, questions):
    engine = RolloutEngine(tuned.model, tuned.rows)
    engine.rows = Scripted(tuned.rows, "<think>a</think><answer> </answer>")
    (episode,) = engine(nnx.state(tuned.model, nnx.Param), questions[:1], KEY).episodes
    assert episode.answer == ""


def test_the_episodes_temperature_is_the_default(tuned, questions):
    rows = tuned.rows.replaced(temperature=1.0)
    params = nnx.state(tuned.model, nnx.Param)
    by_model = RolloutEngine(tuned.model, rows)(params, questions, KEY)
    given = RolloutEngine(tuned.model, tuned.rows)(params, questions, KEY, sampling=T1)
    assert [e.texts for e in by_model.episodes] == [e.texts for e in given.episodes]
    greedy = RolloutEngine(tuned.model, rows)(params, questions, KEY, sampling=SamplingConfig(temperature=0.0))
    assert [e.texts for e in greedy.episodes] != [e.texts for e in given.episodes]


def test_the_episodes_penalty_goes_with_its_temperature():
    episode = EpisodeConfig(temperature=0.01, repetition_penalty=1.05)
    assert SamplingConfig().of(episode) == SamplingConfig(0.01, repetition_penalty=1.05)
    assert SamplingConfig(repetition_penalty=1.2).of(episode) == SamplingConfig(0.01, repetition_penalty=1.2)
    assert SamplingConfig(temperature=1.0).of(episode) == SamplingConfig(temperature=1.0)


@pytest.mark.parametrize(("turn_ids", "gate"), [("sampled", "unanswered"), ("retokenised", "box")])
def test_grpo_trains_on_what_was_sampled(turn_ids, gate):
    loaded = load_model("nano-grpo")
    rollout, objective = RolloutConfig(turn_ids=turn_ids), ObjectiveConfig(mask="reference")
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        grpo = GRPO(
            GRPOConfig(rollout=rollout, objective=objective), loaded.model, loaded.rows.replaced(gate="box"), mesh
        )
    assert grpo.rows.episode.gate == grpo.engine.rows.episode.gate == gate
