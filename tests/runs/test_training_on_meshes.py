"""Training on meshes of simulated devices and in several real processes: the losses of one device.

A GRPO loss is a difference of terms of the rewards' size and passes through zero, so its error is taken relative to the
largest loss of the run.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.processes import address, environment
from zoomearth_jax.runs.metric_rows import read_metrics

PIPES = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}  # Gloo greets on stdout
VERBS = {
    "sft": ("--model", "nano", "--batch-size", 16, "--questions", 64),
    "grpo": ("--model", "nano-grpo", "--prompts", 8, "--group", 4, "--updates", 2),
}


def train(out, verb, steps, devices, *args, processes=1):
    """The losses of a run by the command, on `devices` devices in each process."""
    more = [*VERBS[verb], "--steps", steps, "--out", out, *args]
    if processes > 1:
        more += ["--mesh.coordinator", address(), "--mesh.processes", processes]
    started = []
    for number in range(processes):
        own = ["--mesh.process", number] if processes > 1 else []
        command = [sys.executable, "-m", "zoomearth_jax.cli", verb, *map(str, [*more, *own])]
        started.append(subprocess.Popen(command, env=environment(devices), **PIPES))
    for process in started:
        _, err = process.communicate(timeout=500)
        assert process.returncode == 0, err[-3000:]
    return np.array([row["loss"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row])


def error(got, want):
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["sft", "grpo"])
def test_two_processes_with_microbatches_train_as_one_device(verb, tmp_path):
    dump = ["--dump", 1] if verb == "grpo" else []
    want = train(tmp_path / "one", verb, 3, 1, *dump)
    got = train(tmp_path / "two", verb, 3, 2, "--accumulate", 2, "--mesh.fsdp", 2, *dump, processes=2)
    assert error(got, want) < 1e-4
    assert np.ptp(want) > 0.1 * np.abs(want).max()  # it trains
    if dump:
        assert dumped(tmp_path / "two") == dumped(tmp_path / "one")


def dumped(out):
    """What the episodes of a run's first step wrote, by their ids; each process dumps its own."""
    lines = [json.loads(line) for path in (out / "rollouts").glob("step_000001_*") for line in path.open()]
    assert len(lines) == 32
    return {line["id"]: [turn["text"] for turn in line["turns"]] for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_20_steps_on_1_2_4_and_8_devices_and_two_processes(verb, tmp_path):
    want = train(tmp_path / "1", verb, 20, 1)
    errors = {
        "2": error(train(tmp_path / "2", verb, 20, 2), want),
        "4, fsdp 4": error(train(tmp_path / "4", verb, 20, 4, "--mesh.fsdp", 4), want),
        "8, fsdp 2, tensor 2": error(train(tmp_path / "8", verb, 20, 8, "--mesh.fsdp", 2, "--mesh.tensor", 2), want),
        "2 processes x 2": error(train(tmp_path / "22", verb, 20, 2, "--mesh.fsdp", 2, processes=2), want),
    }
    print(verb, {mesh: f"{value:.1e}" for mesh, value in errors.items()})
    assert max(errors.values()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_two_processes_validate_as_one_device(verb, tmp_path):
    """The model before training, whose parameters don't depend on the mesh."""
    asked = ["--validate-every", 2, "--validate.limit", 21]
    train(tmp_path / "two", verb, 2, 2, *asked, "--model", "nano-grpo", "--mesh.fsdp", 2, processes=2)
    train(tmp_path / "one", verb, 2, 1, *asked, "--model", "nano-grpo")
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert one[0]["step"] == 0
    assert one[0]["validation/questions"] == 21
    assert two[0] == one[0]
    assert two[2].keys() >= one[0].keys()


@pytest.mark.slow
def test_episodes_played_ahead_in_two_processes_are_those_of_one_device(tmp_path):
    ahead = ["--rollout.ahead", "--objective.importance-cap", 2, "--updates", 1]
    want = train(tmp_path / "one", "grpo", 4, 1, *ahead)
    got = train(tmp_path / "two", "grpo", 4, 2, "--mesh.fsdp", 2, *ahead, processes=2)
    assert error(got, want) < 1e-4
    assert np.ptp(want) > 0.1 * np.abs(want).max()
    gaps = [row["sampler_gap"] for row in read_metrics(tmp_path / "two" / "metrics.jsonl")]
    assert (
        gaps[0] < 1e-5 < 1e-3 < min(gaps[1:])
    )  # one update lies between sampler and trainer, but for the first rollout


@pytest.mark.slow
def test_self_distillation_in_two_processes_is_that_of_one_device(tmp_path):
    """With microbatches, and a moving average that lies along fsdp."""
    distill = ["--objective.distill-weight", 1, "--objective.distill-gate", "all"]
    want = train(tmp_path / "one", "grpo", 3, 1, *distill)
    got = train(tmp_path / "two", "grpo", 3, 2, "--accumulate", 2, "--mesh.fsdp", 2, *distill, processes=2)
    assert error(got, want) < 1e-4
    one, two = (
        np.array([row["distill_gap"] for row in read_metrics(tmp_path / name / "metrics.jsonl")])
        for name in ("one", "two")
    )
    assert np.abs(one).min() > 1e-3
    assert error(two, one) < 1e-4


@pytest.mark.slow
def test_packed_rows_train_on_8_devices_and_in_two_processes_as_on_one_device(tmp_path):
    """The third batch fills two rows of a device in the first process, and one in the second. The gradients agree as the losses
    do, which each follow from the gradients of the steps before."""
    runs = {"fixed": (1, 1, ()), "1": (1, 1, (128,)), "8": (8, 1, (128,)), "2 x 4": (4, 2, (128,))}
    for name, (devices, processes, pack_len) in runs.items():
        how = [*(["--pack-len", *pack_len] if pack_len else []), *(["--mesh.fsdp", 2] if devices > 1 else [])]
        train(tmp_path / name, "sft", 4, devices, *how, processes=processes)
    rows = {name: read_metrics(tmp_path / name / "metrics.jsonl") for name in runs}
    for metric in ("loss", "grad_norm", "entropy"):
        values = {name: np.array([row[metric] for row in rows[name]]) for name in runs}
        for name in ("1", "8", "2 x 4"):
            assert error(values[name], values["fixed"]) < 1e-4, (name, metric)
        assert np.ptp(values["fixed"]) > 0.1 * np.abs(values["fixed"]).max()


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="a step of 16 questions doesn't divide over 3 devices"):
        train(tmp_path, "sft", 1, 3)
