"""`zoomearth bench resume`: runs that are killed at random moments and resumed, against runs that nobody disturbed."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from zoomearth_jax.errors import UserError
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.runs.saved_steps import half_written, newest, numbers, read_record
from zoomearth_jax.terminal.progress import Progress

# Small steps and many checkpoints, so that kills often hit a write; two updates per rollout, with a reference policy.
GRPO = ("grpo", "--model", "nano-grpo", "--prompts", "2", "--group", "2", "--updates", "2", "--checkpoint-every", "1")
STAGES = {
    "sft": ("sft", "--questions", "48", "--batch-size", "4", "--checkpoint-every", "2"),
    "grpo": GRPO,
    "refill": (
        *GRPO,
        "--refill",
        "1",
        "--curriculum.high",
        "0.9",
    ),  # whose log of pass rates must keep step with the checkpoints
}
KILLS_PER_RUN = 4  # on average


@dataclasses.dataclass(frozen=True)
class ResumeConfig:
    """SIGKILL at random moments of SFT and GRPO (nano), each resumed until it ends, against the undisturbed run.

    Attributes:
        stages: sft, grpo, and refill, which is GRPO with refills and a curriculum.
        kills: kills of each stage, over as many runs as it takes.
        steps: steps of a run.
        seed: random seed of the moments.
        json: print JSON.
    """

    stages: tuple[str, ...] = ("sft", "grpo")
    kills: int = 20
    steps: int = 40
    seed: int = 0
    json: bool = False

    def __post_init__(self):
        if self.kills < 1 or self.steps < 4:
            raise UserError("bench resume: kills must be positive, steps at least 4")
        if not self.stages or set(self.stages) - set(STAGES):
            raise UserError(f"bench resume: stages are some of {', '.join(STAGES)}")


def bench_resume(config: ResumeConfig) -> list[dict]:
    """One row; for each stage whether the last parameters, optimizer states and logged metrics of all resumed runs are those of
    the undisturbed one bit for bit, the runs, the kills that hit a write, and median seconds from start to the first step."""
    row: dict = {f"{stage}_equal": None for stage in config.stages} | {"kills": config.kills}
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress("kills", config.kills * len(config.stages)) as bar,
    ):
        for stage in config.stages:
            found = _stage(stage, config, Path(folder), bar)
            row |= {f"{stage}_{name}": value for name, value in found.items()}
    return [row]


def _stage(stage: str, config: ResumeConfig, folder: Path, bar) -> dict:
    """Returns a stage's part of the row."""
    rng, whole = random.Random(f"{stage} {config.seed}"), _Run(stage, config.steps, folder, "whole")
    whole.go_on()  # fills the cache of programs
    whole = _Run(stage, config.steps, folder, "again")
    whole.go_on()
    span = whole.stepping_s / KILLS_PER_RUN * 2  # of the moments: uniform, half of it on average
    wanted, kills, in_write, restarts, equal = _result(whole.out), 0, 0, [], True
    runs = 0
    while kills < config.kills:
        run, runs, ended = _Run(stage, config.steps, folder, f"killed{runs}"), runs + 1, False
        while not ended:
            ended = run.go_on(rng.uniform(0, span) if kills < config.kills else None)
            restarts += [run.start_s] if run.start_s else []
            if not ended:
                kills += 1
                bar.update()
                in_write += bool(half_written(run.out / "checkpoints"))
        equal &= _same(_result(run.out), wanted)
        shutil.rmtree(run.out)
    return {"equal": equal, "runs": runs, "in_write": in_write, "restart_s": statistics.median(restarts)}


class _Run:
    """A run of the command in processes of its own."""

    def __init__(self, stage: str, steps: int, folder: Path, name: str):
        self.out = folder / f"{stage}_{name}"
        self._command = [sys.executable, "-m", "zoomearth_jax.cli", *STAGES[stage], "--steps", str(steps)]
        self._command += ["--out", str(self.out)]
        self._env = os.environ | {"ZOOMEARTH_CACHE": str(folder / "cache")}
        self.start_s = self.stepping_s = 0.0

    def go_on(self, kill_after: float | None = None) -> bool:
        """Starts or resumes it, and kills it so many seconds after its first step; whether it has come to its end.

        Raises:
            UserError: it failed.
        """
        done = max(numbers(self.out / "checkpoints"), default=None)
        more = [] if not self.out.exists() else ["--overwrite"] if done is None else ["--resume"]
        before, began = self._log_file(), time.perf_counter()
        process = subprocess.Popen(
            [*self._command, *more], env=self._env, start_new_session=True, stderr=subprocess.PIPE
        )
        try:
            while process.poll() is None and not self._stepped(before, done or 0):
                time.sleep(0.01)
            self.start_s = time.perf_counter() - began
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            return False
        finally:  # Ctrl-C too
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            said = process.communicate()[1].decode(errors="replace")
        self.stepping_s = time.perf_counter() - began - self.start_s
        if process.returncode:
            raise UserError(
                f"bench resume: {' '.join(more) or 'the run'} of {self.out.name} failed: {said.strip()[-300:]}"
            )
        return True

    def _log_file(self) -> int | None:
        """Which file the log is: a run that goes on writes it anew, without what its predecessor logged too much."""
        file = self.out / "metrics.jsonl"
        return file.stat().st_ino if file.exists() else None

    def _stepped(self, before: int | None, done: int) -> bool:
        if self._log_file() == before:
            return False
        rows = read_metrics(self.out / "metrics.jsonl")
        return bool(rows) and rows[-1]["step"] > done


def _result(out: Path) -> tuple[list[dict], dict]:
    """The logged metrics without timings, and the last checkpoint's arrays."""
    rows = [
        {name: x for name, x in row.items() if name != "alarms" and not name.startswith("perf/")}
        for row in read_metrics(out / "metrics.jsonl")
    ]
    folder = out / "checkpoints"
    step = numbers(folder)[-1]
    wanted = {
        item: {name: jax.ShapeDtypeStruct(form["shape"], form["dtype"]) for name, form in forms.items()}
        for item, forms in read_record(folder / str(step))["arrays"].items()
    }
    return rows, jax.tree.map(np.asarray, newest(folder, wanted, step).items)


def _same(ours: tuple[list[dict], dict], theirs: tuple[list[dict], dict]) -> bool:
    arrays = jax.tree.structure(ours[1]) == jax.tree.structure(theirs[1]) and all(  # type: ignore[operator]
        a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True)
    )
    return ours[0] == theirs[0] and arrays
