"""Runs that refill their steps and leave questions out: a resumed one is bit-equal, in one process or two they play the same."""

import dataclasses
import shutil

import pytest

from tests.rl.test_ahead import last_arrays, rows
from tests.runs.test_training_on_meshes import train
from zoomearth_jax.configs.curriculum import CurriculumConfig
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.rows.loader import LAG
from zoomearth_jax.runs.checkpoints import Checkpoints
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.verbs.grpo import grpo
from zoomearth_jax.verbs.make_scenes import ScenesConfig, write_scenes


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True])
def test_a_run_that_goes_on_from_a_checkpoint_is_bit_equal(ahead, tmp_path):
    folder = write_scenes(ScenesConfig(out=tmp_path / "scenes", count=2, side=300, format="png"))
    config = GRPOConfig(
        model="nano-grpo",
        out=tmp_path / "whole",
        data=(str(folder),),
        steps=LAG + 8,
        prompts=2,
        group=2,
        refill=2,
        curriculum=CurriculumConfig(low=0.1, high=0.9),
        rollout=RolloutConfig(ahead=ahead, batches=2),
        objective=ObjectiveConfig(importance_cap=2.0),
        checkpoint_every=LAG + 2,
        panel_every=0,
    )
    grpo(config)
    whole = rows(config.out)
    assert {row["refill_rounds"] for row in whole} == {0, 1, 2}
    assert all(row["played_groups"] == 2 * (1 + row["refill_rounds"]) for row in whole)
    assert all(row["teaching_groups"] == 1 or row["refill_rounds"] == 2 for row in whole)
    assert max(row["left_out"] for row in whole[:LAG]) == 0 < max(row["left_out"] for row in whole[LAG + 2 :])
    assert not any("recompile" in row.get("alarms", []) for row in read_metrics(config.out / "metrics.jsonl"))
    out = shutil.copytree(config.out, tmp_path / "cut")
    with Checkpoints(out) as checkpoints:
        checkpoints._manager.delete(config.steps)  # as if the run had died after step LAG + 2
    grpo(dataclasses.replace(config, out=out, resume=True))
    assert rows(out) == whole
    assert last_arrays(out) == last_arrays(config.out)
    assert (out / "pass_rates.jsonl").read_bytes() == (config.out / "pass_rates.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_agree_on_how_often_a_step_is_refilled(tmp_path):
    """Each fills up with groups of its own, so batches are not those of one device. What is drawn is, as long as the policy is."""
    asked = ["--prompts", 4, "--group", 2, "--refill", 2, "--updates", 1]
    train(tmp_path / "two", "grpo", 4, 1, *asked, processes=2)
    train(tmp_path / "one", "grpo", 1, 1, *asked)
    two = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert [row["played_groups"] for row in two] == [4 * (1 + row["refill_rounds"]) for row in two]
    assert any(row["refill_rounds"] for row in two)
    assert all(row["teaching_groups"] == 1 or row["refill_rounds"] == 2 for row in two)
    rates = [
        {(name, index): rate for name, index, rate in read_metrics(tmp_path / run / "pass_rates.jsonl")[0]["rates"]}
        for run in ("two", "one")
    ]
    assert len(rates[0]) == two[0]["played_groups"]
    assert rates[1].keys() <= rates[0].keys()  # one device has more groups to choose from, and ends no later
    assert all(rates[0][place] == rate for place, rate in rates[1].items())
