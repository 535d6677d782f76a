"""The page of a run's dumped rollouts: every group with its episodes side by side, their rewards and advantages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoomearth_jax.errors import UserError
from zoomearth_jax.reports.episode_rows import shown_turns
from zoomearth_jax.reports.gallery import MAX_BYTES, write_gallery
from zoomearth_jax.reports.rollouts import FOLDER, dump_files
from zoomearth_jax.reports.thumbnails import read_thumbnails
from zoomearth_jax.terminal.progress import say

_GROUP = ("step", "group", "question", "reference", "level", "category", "width", "height", "reference_looks")
_EPISODE = ("id", "sample", "answer", "box_reason", "truncated", "tokens", "correct")
_MORE = ("advantage", "kl")  # figures of an episode beside its rewards


def write_rollout_page(
    path, run: Path, steps: tuple[int, int] | None = None, max_bytes: int = MAX_BYTES
) -> tuple[int, int]:
    """Writes the page of the dumps in `run`/rollouts, the newest groups first to get their thumbnails.

    Args:
        steps: the first and the last step to show; all by default.
        max_bytes: about how large the page may be; groups beyond that go without thumbnails, the oldest first.

    Returns:
        numbers of groups and of episodes.

    Raises:
        UserError: there are no dumps, none of these steps, none that can be read, or the page can't be written.
    """
    folder = Path(run) / FOLDER
    first, last = steps or (0, 10**18)
    files = [path for path, step in dump_files(folder, "step") if first <= step <= last]
    if not files:
        which = f"of the steps {first} to {last}" if steps else "of rollouts"
        raise UserError(f"{folder}: no dumps {which}; `zoomearth grpo --dump N` writes them every N steps")
    lines, broken = _read(files)
    if broken:
        say(f"{folder}: {broken:,} {'line' if broken == 1 else 'lines'} can't be read; left out")
    if not lines:
        raise UserError(f"{folder}: no line can be read; remove the folder, or run with --dump again")
    names = _figures(lines)
    groups = _groups(lines, names)
    thumbnails = [path for path, step in dump_files(folder, "thumbnails") if first <= step <= last]
    widest = max(len(group["runs"]) for group in groups)
    shown = sorted({group["step"] for group in groups})
    write_gallery(
        path,
        "rollouts",
        groups[::-1],
        [read_thumbnails(*thumbnails)] * widest,
        max_bytes,
        settings={"figures": names},
        counted="groups",
        placeholder="question, answer, text …",
        title=f"Rollouts of {Path(run).resolve().name}",
        summary=f"{len(lines):,} episodes of {len(groups):,} groups, {_span(shown)}",
        levels=sorted({str(group["level"]) for group in groups if "level" in group}),
        figures=[(name, name) for name in names],
        steps=shown,
    )
    return len(groups), len(lines)


def _span(steps: Sequence[int]) -> str:
    return f"step {steps[0]:,}" if len(steps) == 1 else f"{len(steps):,} steps from {steps[0]:,} to {steps[-1]:,}"


def _read(files: Sequence[Path]) -> tuple[list[dict[str, Any]], int]:
    """The lines of dumps in the order of the files, each episode once; and how many can't be read."""
    found: dict[str, dict[str, Any]] = {}
    broken = 0
    for path in files:
        try:
            texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            broken += 1
            continue
        for text in texts:
            try:
                line = json.loads(text)
                _check(line)
                found.setdefault(line["id"], line)
            except (ValueError, KeyError, TypeError, RecursionError):
                broken += 1
    return list(found.values()), broken


def _check(line: Mapping[str, Any]) -> None:
    """Refuses what the page can't show: ValueError, KeyError or TypeError."""
    if not isinstance(line["rewards"], dict) or not all(isinstance(line[key], str) for key in ("id", "question")):
        raise TypeError
    if not all(type(line[key]) is int for key in ("step", "group", "sample", "width", "height")):
        raise TypeError
    if not all(isinstance(turn["text"], str) for turn in line["turns"]):
        raise TypeError
    for box in line["reference_looks"]:
        if len(box) != 4 or not all(isinstance(side, int | float) for side in box):
            raise TypeError


def _figures(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all figures of episodes, the total first."""
    names = dict.fromkeys(name for line in lines for name in line["rewards"])
    more = [name for name in _MORE if any(name in line for line in lines)]
    return sorted(names, key=lambda name: name != "total") + more


def _groups(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The groups in the order of their steps and numbers, each with its episodes as `runs`."""
    groups: dict[tuple[int, int], dict[str, Any]] = {}
    for line in sorted(lines, key=lambda line: (line["step"], line["group"], line["sample"])):
        key = line["step"], line["group"]
        if key not in groups:
            about = {name: line[name] for name in _GROUP if line.get(name) not in ("", None, [])}
            groups[key] = {**about, "id": f"{key[0]}-{key[1]}", "runs": []}
        figures = {**line["rewards"], **{name: line.get(name) for name in _MORE}}
        episode = {name: line[name] for name in _EPISODE if line.get(name) not in ("", None)}
        values = [x if isinstance(x := figures.get(name), int | float) else None for name in names]
        groups[key]["runs"].append({**episode, "figures": values, "turns": shown_turns(line["turns"])})
    return list(groups.values())
