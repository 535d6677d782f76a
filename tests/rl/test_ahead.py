"""Episodes that are played while the step before updates: which policy plays them, checkpoints, and a stop."""

import dataclasses
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.sharding import make_mesh
from zoomearth_jax.rl import grpo as grpo_module
from zoomearth_jax.rl.grpo import GRPO, Asked
from zoomearth_jax.runs.checkpoints import Checkpoints
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.runs.saved_steps import numbers, read_record
from zoomearth_jax.verbs.grpo import grpo

AHEAD = GRPOConfig(
    model="nano-grpo",
    steps=5,
    prompts=2,
    group=4,
    rollout=RolloutConfig(ahead=True),
    objective=ObjectiveConfig(kl_weight=0.0, importance_cap=2.0),
    checkpoint_every=3,
    panel_every=0,
)


def rows(out):
    return [
        {name: x for name, x in row.items() if not name.startswith(("perf/", "alarms"))}
        for row in read_metrics(out / "metrics.jsonl")
    ]


def last_arrays(out):
    folder = out / "checkpoints"
    return read_record(folder / str(max(numbers(folder))))["arrays"]


def test_which_steps_are_played_ahead():
    assert [step for step in range(1, 7) if AHEAD.plays_ahead(step)] == [1, 2, 4]
    off = dataclasses.replace(AHEAD, rollout=RolloutConfig())
    assert not any(off.plays_ahead(step) for step in range(7))


def test_the_weights_that_correct_it_are_asked_for():
    with pytest.raises(UserError, match=r"set objective\.importance_cap"):
        dataclasses.replace(AHEAD, objective=ObjectiveConfig())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_policy_from_before_the_update_plays(dtype):
    """The same ids and probabilities as where that policy plays first and updates then, though the update takes its memory."""

    def fresh(mesh):
        loaded = load_model("nano-grpo", ComputeConfig(dtype=dtype), mesh)
        return GRPO(AHEAD, loaded.model, loaded.rows, mesh)

    def asked(training, step):
        questions = scene_questions("grpo", 0, 2 * step, 2)
        return Asked(questions, training.send(training.rows.prompts(questions)), step)

    mesh = make_mesh((1, 1, 1))
    with jax.set_mesh(mesh):
        training, other = fresh(mesh), fresh(mesh)
        played = training.play(asked(training, 0))
        updated, upcoming = training.update(played, asked(training, 1))
        first, want = other.play(asked(other, 0)), other.play(asked(other, 1))
        np.testing.assert_array_equal(upcoming.episodes.replies.ids, want.episodes.replies.ids)
        np.testing.assert_array_equal(upcoming.episodes.logprobs, want.episodes.logprobs)
        np.testing.assert_array_equal(upcoming.rewards["total"], want.rewards["total"])
        again, nothing = other.update(first)
        assert nothing is None
        assert again.metrics() == updated.metrics()
        after = other.play(asked(other, 1))
        assert (after.episodes.logprobs != want.episodes.logprobs).any()  # the update changed the policy


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint_is_bit_equal(tmp_path):
    config = dataclasses.replace(AHEAD, out=tmp_path / "whole")
    grpo(config)
    gaps = [row["sampler_gap"] for row in rows(config.out)]
    assert [gap < 1e-5 for gap in gaps] == [True, False, False, True, False]
    out = shutil.copytree(config.out, tmp_path / "cut")
    with Checkpoints(out) as checkpoints:
        checkpoints._manager.delete(5)  # as if the run had died after step 3
        assert checkpoints.latest == 3
    grpo(dataclasses.replace(config, out=out, resume=True))
    assert rows(out) == rows(config.out)
    assert last_arrays(out) == last_arrays(config.out)


@pytest.mark.slow
def test_a_stop_while_the_next_episodes_are_played_finishes_the_update(tmp_path, monkeypatch):
    """They are dropped. The run goes on with episodes on policy, so it trains on, though not bit for bit as undisturbed."""
    config = dataclasses.replace(AHEAD, out=tmp_path / "run")
    grpo(dataclasses.replace(config, out=tmp_path / "whole"))
    rewards, calls = grpo_module.episode_rewards, iter(range(99))

    def scored(*args):
        if next(calls) == 1:  # of the second step's episodes, played while the first updates
            os.kill(os.getpid(), signal.SIGTERM)
        return rewards(*args)

    with monkeypatch.context() as patched:
        patched.setattr(grpo_module, "episode_rewards", scored)
        with pytest.raises(SystemExit) as ended:
            grpo(config)
    assert ended.value.code == 0
    done = numbers(config.out / "checkpoints")[-1]
    assert done in (1, 2)  # the second step's may have begun when the signal comes
    grpo(dataclasses.replace(config, resume=True))
    ours, theirs = rows(config.out), rows(tmp_path / "whole")
    assert ours[:done] == theirs[:done]
    assert [row["step"] for row in ours] == [1, 2, 3, 4, 5]
    assert ours[done]["sampler_gap"] < 1e-5 < theirs[done]["sampler_gap"]
