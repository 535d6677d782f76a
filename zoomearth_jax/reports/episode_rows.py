"""What a page shows of each question: its record, its scores, and its place in one or two runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

RIGHT_BOX = 0.5  # IoU from which on a box is right
_SHARED = ("id", "image", "width", "height", "question", "reference", "level", "category", "reference_box", "fault")
_OWN = ("answer", "box", "window", "box_reason", "truncated", "tokens", "visual_tokens")
_TURN = ("text", "box", "window", "source")


class Recorded(Protocol):
    """A record of an evaluation (`zoomearth_jax.evaluation.records.Record`)."""

    @property
    def id(self) -> str:
        """Identifier within the benchmark."""
        ...

    @property
    def fault(self) -> str:
        """Why the image can't be read."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        ...


class Scored(Protocol):
    """Scores [N] of the records without a fault (`zoomearth_jax.evaluation.benchmarks.benchmark.Scores`)."""

    @property
    def official(self) -> np.ndarray:
        """Scores by the benchmark's rule, 0 to 1."""
        ...

    @property
    def strict(self) -> np.ndarray:
        """Scores by the strict rule, 0 or 1."""
        ...

    @property
    def parsed(self) -> np.ndarray:
        """Whether the official rule found an answer."""
        ...


class Evaluated(NamedTuple):
    """A finished evaluation.

    Attributes:
        results: the content of its results.json.
        records: of each way of showing crops its records; the first is the one that a page is about.
        scores: of the same ways, of the records without a fault.
        thumbnails: the files that `Thumbnails` wrote for the first way.
    """

    results: Mapping[str, Any]
    records: Mapping[str, Sequence[Recorded]]
    scores: Mapping[str, Scored]
    thumbnails: Sequence[Path] = ()

    @property
    def main(self) -> str:
        """The way of showing crops that a page is about."""
        return next(iter(self.records))


def iou(a: Sequence[float] | None, b: Sequence[float] | None) -> float | None:
    """IoU of two boxes x1, y1, x2, y2 of one frame, 0 without a first; None without a second."""
    if a is None or b is None:
        return None if b is None else 0.0
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a, b
    inside = max(min(ax2, bx2) - max(ax1, bx1), 0.0) * max(min(ay2, by2) - max(ay1, by1), 0.0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inside
    return round(inside / union, 4) if union > 0 else 0.0  # also where sides overflow and union is no number


def scored_rows(records: Sequence[Recorded], scores: Scored) -> dict[str, dict[str, Any]]:
    """Each record as plain data by its id, with `official`, `strict`, `parsed`, `iou` and `zoomed`; scores are None where the
    image couldn't be read."""
    rows, place = {}, 0
    for record in records:
        row = record.to_json() | {"official": None, "strict": None, "parsed": None}
        if not record.fault:
            row["official"] = round(float(scores.official[place]), 4)
            row["strict"] = round(float(scores.strict[place]), 4)
            row["parsed"] = bool(scores.parsed[place])
            place += 1
        row["iou"] = iou(row["box"], row["reference_box"])
        row["zoomed"] = any("window" in turn for turn in row["turns"])
        rows[record.id] = row
    return rows


def episodes(runs: Sequence[Mapping[str, dict[str, Any]]], whole: bool) -> list[dict[str, Any]]:
    """The questions of the first run, each with what all runs made of it (None where a run lacks it); `rank` is the place of
    its id among all.

    Args:
        runs: `scored_rows` of each.
        whole: keep what was written in every run, not only in the first.
    """
    found = []
    ranks = {id: rank for rank, id in enumerate(sorted(runs[0], key=_natural))}
    for id, first in runs[0].items():
        own = [_own(run.get(id), whole or i == 0) for i, run in enumerate(runs)]
        found.append(
            {key: first[key] for key in _SHARED if first[key] not in ("", None)}
            | {"id": id, "rank": ranks[id], "runs": own}
        )
    return found


def shown_turns(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each turn what a page can show: its text, and the box and window that can be drawn."""
    return [{key: turn[key] for key in _TURN if _shows(turn, key)} for turn in turns]


def _shows(turn: Mapping[str, Any], key: str) -> bool:
    """Whether a turn has a text, or a box or window that can be drawn."""
    return key in turn and (isinstance(turn[key], str) or (isinstance(turn[key], list | tuple) and len(turn[key]) == 4))


def _natural(id: Any) -> str:
    """An id with its numbers in 20 digits, so that q2 comes before q10."""
    return re.sub(r"\d+", lambda number: number[0].zfill(20), str(id))


def _own(row: dict[str, Any] | None, whole: bool) -> dict[str, Any] | None:
    if row is None or row["fault"]:
        return None
    kept = {key: row[key] for key in _OWN if row[key] not in ("", None, False)}
    turns = row["turns"] or ({"text": row["output"]},)
    kept["turns"] = shown_turns(turns) if whole else []
    return kept | {key: row[key] for key in ("official", "strict", "parsed", "iou", "zoomed")}


def place_thumbnails(
    found: Sequence[dict[str, Any]], thumbnails: Sequence[tuple[Mapping, Mapping]], room: int
) -> tuple[list[str], int]:
    """Gives episodes the numbers of their pictures: `overview` of the episode, `picture` of a turn that was shown one.

    Args:
        found: of `episodes`; changed in place.
        thumbnails: of each run, as `read_thumbnails` gives them; by the run's own id, where it has one, else by the episode's.
        room: bytes that all pictures may take.

    Returns:
        the pictures in base64, each once, and how many episodes go without because there is no more room.
    """
    pictures: list[str] = []
    places: dict[str, int] = {}
    left_out = 0
    for episode in found:
        targets, data = _targets(episode, thumbnails)
        new = dict.fromkeys(digest for _, _, digest in targets if digest not in places)
        cost = sum(len(data[digest]) + 3 for digest in new)  # with quotes and a comma
        if cost > room:
            left_out += 1
            continue
        room -= cost
        for digest in new:
            places[digest] = len(pictures)
            pictures.append(data[digest])
        for target, name, digest in targets:
            target.setdefault(name, places[digest])
    return pictures, left_out


def _targets(
    episode: dict[str, Any], thumbnails: Sequence[tuple[Mapping, Mapping]]
) -> tuple[list[tuple], dict[str, str]]:
    """Which picture (by its digest) goes where in an episode, under which name; and these pictures."""
    found: list[tuple] = []
    data: dict[str, str] = {}
    for run, (thumbs, pictures) in zip(episode["runs"], thumbnails, strict=False):
        if thumbnail := thumbs.get((run or {}).get("id", episode["id"])):
            shown = [turn for turn in (run["turns"] if run else ()) if "window" in turn]
            own = [(episode, "overview", thumbnail.overview)]
            own += [(turn, "picture", digest) for turn, digest in zip(shown, thumbnail.pictures, strict=False)]
            found += [target for target in own if target[2] in pictures]
            data |= {digest: pictures[digest] for _, _, digest in own if digest in pictures}
    return found, data
