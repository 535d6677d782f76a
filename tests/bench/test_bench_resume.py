"""`zoomearth bench resume`: real kills, and that a difference would be seen."""

import json

import numpy as np
import pytest

from zoomearth_jax.bench.resume import _same
from zoomearth_jax.cli import main


@pytest.mark.slow
def test_killed_runs_end_as_undisturbed_ones(capsys):
    assert main(["bench", "resume", "--kills", "2", "--steps", "20", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["sft_equal"], row["grpo_equal"], row["kills"]) == (True, True, 2)
    assert min(row["sft_restart_s"], row["grpo_restart_s"]) > 0.5


@pytest.mark.slow
def test_a_run_that_refills_and_leaves_questions_out_ends_so_too(capsys):
    assert main(["bench", "resume", "--stages", "refill", "--kills", "2", "--steps", "20", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["refill_equal"]
    assert row["kills"] == 2


def test_a_changed_bit_or_row_is_a_difference():
    rows, arrays = [{"step": 1, "loss": 0.5}], {"params": {"w": np.array([0.0, 1.0], np.float32)}}
    assert _same((rows, arrays), (list(rows), {"params": {"w": arrays["params"]["w"].copy()}}))
    assert not _same((rows, arrays), (rows, {"params": {"w": np.array([-0.0, 1.0], np.float32)}}))
    assert not _same((rows, arrays), (rows, {"params": {"v": arrays["params"]["w"]}}))
    assert not _same((rows, arrays), ([{"step": 1, "loss": 0.25}], arrays))


def test_bad_settings_are_one_line(capsys):
    assert main(["bench", "resume", "--kills", "0"]) == 2
    assert "kills must be positive" in capsys.readouterr().err
    assert main(["bench", "resume", "--stages", "evaluate"]) == 2
    assert "stages are some of sft, grpo, refill" in capsys.readouterr().err
