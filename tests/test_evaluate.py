"""What an evaluation states, against counting by hand."""

import types

import pytest

from zoomearth_jax.cli import main
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.data_pipeline.boxes import Box, Frame, crop_window
from zoomearth_jax.data_pipeline.questions import Question
from zoomearth_jax.evaluate import sample_record, summarize
from zoomearth_jax.rl.rollout import Episode

IMAGE, LAYOUT = Frame(1000, 1000), EpisodeConfig(min_window_px=100)


def question(answer, box=None):
    return Question(types.SimpleNamespace(frame=IMAGE), "?", answer, "object" if box else "global", box)


def episode(answer, box=None):
    window = box and crop_window(box, LAYOUT.min_window_px)
    return Episode("", "" if box else None, box, "" if box else "absent", window, answer, False)


QUESTIONS = [question("3"), question("ship", Box(0, 0, 20, 20, IMAGE)), question("urban"), question("yes")]
EPISODES = [episode("III"), episode("ships", Box(10, 0, 30, 20, IMAGE)), episode("rural"), episode("Yes.")]


@pytest.mark.parametrize(
    ("match", "correct"),
    [
        ("exact", [False, False, False, True]),
        ("wordnet", [True, True, False, True]),  # urban and rural are 1/3 alike
        ("typed", [False, True, False, True]),  # III is a synonym of 3, but no number here
    ],
)
def test_answers_are_correct_by_the_match(match, correct):
    summary = summarize(QUESTIONS, EPISODES, LAYOUT, match)
    assert summary["accuracy"] == sum(correct) / 4
    assert summary["accuracy_by_level"] == {"global": (correct[0] + correct[2] + correct[3]) / 3, "object": correct[1]}
    records = [sample_record(q, e, match=match) for q, e in zip(QUESTIONS, EPISODES, strict=True)]
    assert [record["correct"] for record in records] == correct


def test_iou_of_boxes_and_of_windows():
    summary = summarize(QUESTIONS, EPISODES, LAYOUT)
    assert summary["apo_iou"] == pytest.approx(1 / 3)
    assert summary["apo_iou_window"] == 1.0  # both boxes are read in the corner's window
    assert summary["zoom_rate"] == 0.25


def test_an_unknown_match_is_one_line(capsys):
    assert main(["evaluate", "--match", "wordnett"]) == 2
    error = capsys.readouterr().err
    assert "wordnett" in error
    assert error.count("\n") == 1
