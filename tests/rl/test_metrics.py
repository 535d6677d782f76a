"""What happened in a rollout, in numbers, against counting by hand."""

import types

import numpy as np
import pytest

from tests.episodes import made_episode
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.data_pipeline.rows.builder import Replies
from zoomearth_jax.rl.metrics import episode_table, rollout_metrics, zoom_alarm
from zoomearth_jax.rl.rollout.engine import Trajectories

IMAGE = Frame(100, 50)
LAYOUT = EpisodeConfig(view_px=56, prompt_len=8, turn_lens=(3, 2)).layout(28)


def question(box):
    return Question(types.SimpleNamespace(frame=IMAGE), "?", "yes", "object", (Look(box),) if box else ())


def episode(window=None, reason="", answer="yes", truncated=False):
    return made_episode("", None if window is None else "", None, reason, window, answer, truncated)


@pytest.fixture
def table():
    """Two questions, the first with a reference box, two episodes each."""
    questions = [question(Box(0, 0, 10, 10, IMAGE)), question(None)]
    episodes = [
        episode(Box(0, 0, 50, 20, IMAGE)),
        episode(reason="malformed", answer=None, truncated=True),
        episode(),
        episode(reason="absent", answer="no"),
    ]
    target = np.zeros((4, LAYOUT.reply_len), bool)
    target[:, 0], target[1, :3], target[0, -2:] = True, True, True
    played = Trajectories(None, Replies(None, None, target, None), None, None, None, episodes, None)
    rewards = {"iou": np.array([0.4, 0, 0, 0]), "total": np.array([1.4, 0, 2.0, 2.0])}
    return episode_table(questions, played, rewards, np.array([1.0, -1.0, 0.0, 0.0]), LAYOUT)


def test_rates_and_means(table):
    metrics = rollout_metrics(table, 2)
    assert metrics == pytest.approx(
        {
            "reward_iou": 0.1,
            "reward_total": 1.35,
            "advantage": 0.0,
            "zoom_rate": 0.25,
            "looks": 0.25,
            "looks_missing": 0.25,  # of the second episode, whose question has one look
            "looks_spare": 0.0,
            "iou": 0.2,  # of the two episodes with a reference
            "crop_area": 50 * 20 / (100 * 50),
            "parse_failure": 0.25,
            "no_answer": 0.25,
            "truncated": 0.25,
            "tokens": (3 + 3 + 1 + 1) / 4,
            "tokens_max": 3,
            "turn1_tokens": (1 + 3 + 1 + 1) / 4,
            "turn2_tokens": 2.0,
            "reward_iou_std": np.std([0.4, 0, 0, 0]),
            "reward_total_std": np.std([1.4, 0, 2, 2]),
            "advantage_std": np.sqrt(0.5),
            "flat_groups": 0.5,
            "teaching_groups": 0.5,
        },
        abs=1e-6,
    )


def test_what_applies_to_no_episode_is_left_out(table):
    kept = {name: values[1:] if name != "reward_total" else values[2:] for name, values in table.items()}
    metrics = rollout_metrics(kept, 2)
    assert {"crop_area", "turn2_tokens"}.isdisjoint(metrics)
    assert metrics["zoom_rate"] == 0


@pytest.mark.parametrize(
    ("zoomed", "referenced", "alarm"),
    [
        ([0, 0], [1, 0], "no episode zooms in"),
        ([0, 0], [0, 0], "no episode zooms in"),
        ([1, 1], [1, 0], "every episode zooms in"),
        ([1, 1], [1, 1], None),  # as it should be
        ([1, 0], [1, 0], None),
    ],
)
def test_zoom_alarm(zoomed, referenced, alarm):
    assert zoom_alarm({"zoom_rate": np.array(zoomed), "has_reference": np.array(referenced)}) == alarm
