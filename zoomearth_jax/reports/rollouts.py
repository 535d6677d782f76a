"""Dumps of a run's rollouts: all episodes of a step as JSON lines, with thumbnails beside them.

OUT/rollouts holds two files a step and process: `step_N_P.jsonl`, a line for each episode, and `thumbnails_N_P.jsonl`. Both are
written whole, the lines last.
"""

from __future__ import annotations

import json
import math
import queue
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.files import write_file
from zoomearth_jax.models.sharding import process_share
from zoomearth_jax.reports.thumbnails import encoded, thumbnail_line
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.rl.records import sample_record
from zoomearth_jax.rl.rollout.engine import Trajectories
from zoomearth_jax.runs.saved_steps import together
from zoomearth_jax.terminal.progress import say

FOLDER = "rollouts"
WAITING = 2  # steps that may wait to be written; then the run waits too
_FILE = re.compile(r"(step|thumbnails)_(\d{6,})_(\d+)\.jsonl")
_ALSO = ("advantage", "kl")  # columns of the table that a line has beside the rewards


class _Step(NamedTuple):
    """What a step leaves to be written: A questions with their overviews, A x G episodes, and numbers of each by name."""

    step: int
    questions: Sequence[Question]
    overviews: Sequence[np.ndarray]
    episodes: Sequence[Episode]
    table: Mapping[str, np.ndarray]


class RolloutDump:
    """Writes every so many steps all episodes into `directory`/rollouts, in a thread. Use as a context manager: leaving it waits
    for what is still to be written.

    No run ends because of a dump: the first step that can't be written is named, and the number of all such steps is told at the
    end. Of several processes each writes its own episodes.
    """

    def __init__(self, directory: Path, every: int, thumbnails_px: int, start: int = 0, mesh: Mesh | None = None):
        """Writes nothing yet.

        Args:
            every: steps between dumps; 0 for none.
            thumbnails_px: longest side of thumbnails; 0 for none.
            start: the last step already done; what an earlier attempt wrote of later ones goes with the first dump.
            mesh: as of the run.
        """
        self.folder = Path(directory) / FOLDER
        self._every, self._side, self._start, self._share = every, thumbnails_px, start, process_share(mesh)[0]
        self._steps: queue.Queue[_Step | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self.failed = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._thread:
            self._steps.put(None)
            self._thread.join()
        if self.failed > 1:
            say(f"{self.folder}: {self.failed:,} steps could not be dumped")

    def due(self, step: int) -> bool:
        """Whether the episodes of this step, from 1 on, are to be written."""
        return self._every > 0 and step % self._every == 0

    def add(
        self, step: int, questions: Sequence[Question], played: Trajectories, table: Mapping[str, np.ndarray]
    ) -> None:
        """Hands the episodes of a step over; all processes must call it for the same steps.

        Args:
            step: 1 is the first.
            table: what `episode_table` gives for this process's episodes, and `kl` where it is known.
        """
        if self._thread is None:
            if _process() == 0:
                self._remove_later()
            together("made room for the dumps of this run")
            self._thread = threading.Thread(target=self._work, name="dump", daemon=True)
            self._thread.start()
        self._steps.put(_Step(step, questions, played.overviews, played.episodes, dict(table)))

    def _remove_later(self) -> None:
        """Removes the files of steps that this run plays again."""
        try:
            for path, step in dump_files(self.folder):
                if step > self._start:
                    path.unlink()
        except OSError as error:
            say(f"{self.folder}: dumps of steps that are played again can't be removed ({error.strerror or error})")

    def _work(self) -> None:
        while (step := self._steps.get()) is not None:
            try:
                self._write(step)
            except Exception as error:  # whatever it is, the run goes on
                self._fail(f"step {step.step} can't be dumped ({' '.join(str(error).split()) or type(error).__name__})")

    def _fail(self, why: str) -> None:
        self.failed += 1
        if self.failed == 1:
            say(f"{why}; the run goes on, further failures are counted")

    def _write(self, step: _Step) -> None:
        group = len(step.episodes) // len(step.questions)
        first = self._share * len(step.questions)
        lines = [_line(step, i, group, first) for i in range(len(step.episodes))]
        if self._side:
            write_file(self._path("thumbnails", step.step), "".join(_thumbnails(step, lines, group, self._side)))
        write_file(self._path("step", step.step), "".join(json.dumps(line) + "\n" for line in lines))

    def _path(self, kind: str, step: int) -> Path:
        return self.folder / f"{kind}_{step:06d}_{_process()}.jsonl"


def _process() -> int:
    return jax.process_index()


def _line(step: _Step, i: int, group: int, first: int) -> dict[str, Any]:
    """What a dump has of the `i`-th episode; `first` is the number of this process's first group."""
    question, table = step.questions[i // group], step.table
    number, sample = first + i // group, i % group
    rewards = {name.removeprefix("reward_"): x[i] for name, x in table.items() if name.startswith("reward_")}
    turns = [x[i] for name, x in table.items() if re.fullmatch(r"turn\d+_tokens", name)]
    return {
        "id": f"{step.step}-{number}-{sample}",
        "step": step.step,
        "group": number,
        "sample": sample,
        "width": question.image.frame.width,
        "height": question.image.frame.height,
        "category": question.category,
        **sample_record(question, step.episodes[i], 0.0),
        "reference_looks": [[round(side, 1) for side in look.box.corners] for look in question.looks],
        "iou": _number(table["iou"][i]),
        "rewards": {name: _number(value) for name, value in rewards.items()},
        **{name: _number(table[name][i]) for name in _ALSO if name in table},
        "tokens": int(table["tokens"][i]),
        "turn_tokens": [None if math.isnan(value) else int(value) for value in turns],
    }


def _number(value: float) -> float | None:
    """Four decimals; null where there is none."""
    return round(float(value), 4) if math.isfinite(value) else None


def _thumbnails(step: _Step, lines: Sequence[Mapping], group: int, side: int) -> Iterator[str]:
    """The lines of the thumbnails; a group's overview is made once."""
    stored: set[str] = set()
    for i, episode in enumerate(step.episodes):
        if i % group == 0:
            overview = encoded(step.overviews[i // group], side)
        shown = [encoded(picture, side) for picture in episode.pictures]
        line, new = thumbnail_line(lines[i]["id"], [overview, *shown], stored)
        stored |= new
        yield line


def dump_files(folder: Path, kind: str = "") -> list[tuple[Path, int]]:
    """The files of a folder of dumps with their steps, by step and process.

    Args:
        kind: `step` or `thumbnails`; both by default.
    """
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        named = _FILE.fullmatch(path.name)
        if named and kind in ("", named[1]):
            found.append((int(named[2]), int(named[3]), path))
    return [(path, step) for step, _, path in sorted(found)]
