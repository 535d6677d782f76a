"""`zoomearth bench refill`: its figures by hand, and a short run of it."""

import json

import pytest

from zoomearth_jax.bench.refill import figures
from zoomearth_jax.cli import main


def row(step, seconds, teaching, played, accuracy=None, **cost):
    common = {"step": step, "perf/seconds": seconds, "teaching_groups": teaching, "played_groups": played}
    common |= {"perf/compile_s": cost.get("compile", 0.0)}
    return common | ({"validation/accuracy": accuracy, "perf/validation_s": 3.0} if accuracy is not None else {})


def test_figures_of_a_run_by_hand():
    rows = [
        {"step": 0, "validation/accuracy": 0.25},
        row(1, 12.0, 0.5, 4, compile=10.0),
        row(2, 4.0, 1.0, 8, 0.5),
        row(3, 2.0, 0.75, 4),
        row(4, 6.0, 0.75, 8, 0.625),
    ]
    found = figures(rows, 0.5)
    assert found == {
        "teaching_groups": 0.75,
        "played_groups": 6,
        "step_s": 2.0,  # of 2, 1, 2 and 3
        "accuracy_before": 0.25,
        "accuracy": 0.625,
        "steps_to_target": 2,
        "seconds_to_target": 3.0,
    }
    assert figures(rows, 0.6)["seconds_to_target"] == 8.0
    assert figures(rows, 0.9)["seconds_to_target"] is None


@pytest.mark.slow
def test_refilled_steps_teach_more(capsys):
    args = [
        "--rewards",
        "answer",
        "--refill",
        "2",
        "--steps",
        "2",
        "--prompts",
        "4",
        "--every",
        "2",
        "--questions",
        "8",
    ]
    assert main(["bench", "refill", *args, "--seeds", "1", "--sft-steps", "40", "--target", "0.9", "--json"]) == 0
    plain, refilled = json.loads(capsys.readouterr().out)
    assert (plain["refill"], refilled["refill"]) == (0, 2)
    assert plain["played_groups"] == 4 < refilled["played_groups"]
    assert plain["teaching_groups"] <= refilled["teaching_groups"]
    assert plain["reached"] == "0 of 1"


def test_bad_settings_are_one_line(capsys):
    assert main(["bench", "refill", "--rewards", "iou"]) == 2
    assert "rewards are some of default, answer" in capsys.readouterr().err
    assert main(["bench", "refill", "--seeds", "0"]) == 2
    assert "counts must be positive" in capsys.readouterr().err
