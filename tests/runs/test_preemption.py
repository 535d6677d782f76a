"""SIGTERM: the run saves, exits 0, and goes on as if nothing had been."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from tests.processes import address
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.rows.workers import Pool
from zoomearth_jax.rl import grpo as grpo_module
from zoomearth_jax.runs import saved_steps
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.runs.preemption import StopSignal
from zoomearth_jax.verbs.grpo import grpo

SFT = ["--questions", "48", "--batch-size", "8", "--steps", "40", "--checkpoint-every", "100"]


def terminate(pid=None):
    os.kill(pid or os.getpid(), signal.SIGTERM)


def start(out, *args):
    command = [sys.executable, "-m", "zoomearth_jax.cli", "sft", "--out", str(out), *SFT, *args]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)


def rows(out):
    drop = ("perf/", "alarms")
    return [
        {name: x for name, x in row.items() if not name.startswith(drop)} for row in read_metrics(out / "metrics.jsonl")
    ]


def last_arrays(out):
    """The hashes of all arrays of the last step."""
    folder = out / "checkpoints"
    return saved_steps.read_record(folder / str(max(saved_steps.numbers(folder))))["arrays"]


def members(group):
    """The processes of a group, by their parents: {pid: parent}."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid,pgid,stat"], capture_output=True, text=True).stdout.splitlines()[1:]
    found = [line.split() for line in lines]
    return {int(pid): int(parent) for pid, parent, own, stat in found if int(own) == group and not stat.startswith("Z")}


@pytest.mark.slow
def test_a_terminated_process_group_saves_exits_0_and_goes_on_bit_equal(tmp_path):
    """The whole group gets the signal, twice, as a scheduler may send it; its data workers go on until the end."""
    process = start(tmp_path, "--workers", "1")
    while len(rows(tmp_path)) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    assert len(members(process.pid)) > 1
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 0, err
    until = time.monotonic() + 10  # Python's tracker of shared memory ends a moment after its parent
    while members(process.pid):
        assert time.monotonic() < until
        time.sleep(0.05)
    done = len(rows(tmp_path))
    assert 3 <= done < 40
    assert err.splitlines()[-1] == f"zoomearth: stopped by SIGTERM after step {done}; --resume goes on"
    assert saved_steps.numbers(tmp_path / "checkpoints") == [done]
    resumed, whole = start(tmp_path, "--resume"), start(tmp_path / "whole")
    for again in (resumed, whole):
        err = again.communicate(timeout=200)[1]
        assert again.returncode == 0, err
    assert rows(tmp_path) == rows(tmp_path / "whole")
    assert last_arrays(tmp_path) == last_arrays(tmp_path / "whole")


@pytest.mark.slow
def test_a_rollout_in_flight_is_played_again_and_updates_are_finished(tmp_path, monkeypatch, capsys):
    """With two updates a rollout: between rollout and updates, and between the updates."""
    config = GRPOConfig(model="nano-grpo", out=tmp_path / "cut", steps=3, prompts=2, group=2, updates=2)
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    grpo(whole)
    rewards, make, calls = grpo_module.episode_rewards, grpo_module.make_grpo_step, iter(range(99))

    def in_rollout(*args):
        terminate()
        return rewards(*args)

    def in_first_update(*args, **kwargs):
        step = make(*args, **kwargs)

        def run(*args):
            if next(calls) == 0:
                terminate()
            return step(*args)

        return run

    for name, patched, done in (("episode_rewards", in_rollout, 0), ("make_grpo_step", in_first_update, 1)):
        with monkeypatch.context() as patch:
            patch.setattr(grpo_module, name, patched)
            with pytest.raises(SystemExit) as stop:
                grpo(dataclasses.replace(config, resume=done > 0))
        assert stop.value.code == 0
        assert f"stopped by SIGTERM after step {done}" in capsys.readouterr().err
        assert saved_steps.numbers(config.out / "checkpoints")[-1] == done == len(rows(config.out))
    grpo(dataclasses.replace(config, resume=True))
    assert rows(config.out) == rows(whole.out)
    assert last_arrays(config.out) == last_arrays(whole.out)


@pytest.mark.slow
def test_of_two_processes_one_is_told_and_both_stop(tmp_path):
    """The run then goes on in one process. Sums of gradients are of another order there, so the losses agree but for rounding."""
    mesh = ["--mesh.coordinator", address(), "--mesh.processes", "2", "--mesh.fsdp", "2"]
    both = [start(tmp_path, *mesh, "--mesh.process", str(number)) for number in (0, 1)]
    while len(rows(tmp_path)) < 3:
        assert [process.poll() for process in both] == [None, None], both[0].stderr.read()
        time.sleep(0.02)
    terminate(both[1].pid)
    said = [process.communicate(timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    done = len(rows(tmp_path))
    assert said[0].splitlines()[-1] == f"zoomearth: stopped by SIGTERM after step {done}; --resume goes on"
    assert saved_steps.numbers(tmp_path / "checkpoints") == [done]
    for again in (start(tmp_path, "--resume"), start(tmp_path / "whole")):
        err = again.communicate(timeout=200)[1]
        assert again.returncode == 0, err
    ours, theirs = ([row["loss"] for row in rows(out)] for out in (tmp_path, tmp_path / "whole"))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_a_data_worker_outlives_a_schedulers_sigterm_but_not_its_pools():
    """From its very start on, when nothing is set up in it."""
    with Pool(len, 1) as pool:
        first = pool.submit([1, 2])
        ((pid, worker),) = pool._executor._processes.items()
        for _ in range(2):
            subprocess.run(["kill", "-TERM", str(pid)], check=True)
            assert first.result(60) == pool.submit([3, 4]).result(60) == 2
        worker.terminate()
        worker.join(20)
        assert worker.exitcode == -signal.SIGKILL
        with pytest.raises(BrokenProcessPool):
            pool.submit([1]).result(60)


def test_what_was_caught_before_is_caught_again():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.requested()
        terminate()
        assert stop.requested()
    assert signal.getsignal(signal.SIGTERM) is before  # nobody called `after`: the run was at its end anyway
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:  # noqa: PT012
        stop.after(3)
        raise KeyboardInterrupt  # which must not become exit code 0


def test_other_threads_leave_sigterm_alone():
    found = []

    def run():
        with StopSignal():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
