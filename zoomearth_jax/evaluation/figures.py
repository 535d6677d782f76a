"""The figures that every benchmark's summary has: accuracy with intervals, tables by kind, and what boxes and crops did.

All are shares of 1, and each average has its 95 % interval beside it, under its own name with `_interval`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zoomearth_jax.evaluation.records import Record
from zoomearth_jax.evaluation.statistics import average, average_of_groups, split
from zoomearth_jax.reports.episode_rows import RIGHT_BOX
from zoomearth_jax.rl.records import masked_iou

if TYPE_CHECKING:
    from zoomearth_jax.evaluation.benchmarks.benchmark import Benchmark, Scores


def figures(
    records: Sequence[Record],
    scores: Scores,
    by: Mapping[str, Sequence[str]],
    headline: Literal["micro", "macro"] = "micro",
) -> dict[str, Any]:
    """A summary.

    Args:
        by: the tables: `by_…` -> the group of each record. The mean over the groups of the first is the macro average.
        headline: which average is `official` and `strict`; the other one is there as `official_macro` or `official_micro`.
    """
    summary: dict[str, Any] = {"questions": len(records)}
    groups = next(iter(by.values()))
    for rule, values in (("official", scores.official), ("strict", scores.strict)):
        names = {"micro": f"{rule}_micro", "macro": f"{rule}_macro"} | {headline: rule}
        micro, macro = average(names["micro"], values), average_of_groups(names["macro"], values, groups)
        summary |= micro | macro if headline == "micro" else macro | micro
    summary |= average("unparsed", ~np.asarray(scores.parsed, bool))
    summary |= average("no_answer", np.array([r.answer is None for r in records]))
    summary |= average("truncated", np.array([r.truncated for r in records]))
    summary |= _looks(records, np.asarray(scores.official) == 1)
    return summary | {name: _table(scores, groups) for name, groups in by.items()}


def _table(scores: Scores, groups: Sequence[str]) -> dict[str, dict]:
    official, strict = split(scores.official, groups), split(scores.strict, groups)
    return {
        name: average("official", official[name])
        | average("strict", strict[name])
        | {"count": int(official[name].size)}
        for name in official
    }


def _looks(records: Sequence[Record], right: np.ndarray) -> dict[str, Any]:
    """Zooms, and boxes against reference boxes where there are any.

    apo_iou is the mean IoU of raw boxes over the questions with a reference box, 0 where no valid box was named;
    apo_iou_window that of the windows that were shown, where the references' windows are known.
    """
    zoomed = np.array([r.zoomed for r in records], bool)
    summary = average("zoom_rate", zoomed)
    summary |= average("broken_box", np.array([r.box_reason not in ("", "absent") for r in records]))
    has_box = np.array([r.reference_box is not None for r in records], bool)
    if not has_box.any():
        return summary
    iou = _iou([r.box for r in records], [r.reference_box for r in records])
    summary |= average("apo_iou", iou[has_box])
    has_window = np.array([r.reference_window is not None for r in records], bool)
    windows = _iou([r.window for r in records], [r.reference_window for r in records])
    summary |= average("apo_iou_window", windows[has_window])
    summary |= average("zoom_precision", has_box[zoomed]) | average("zoom_recall", zoomed[has_box])
    box_right = iou >= RIGHT_BOX
    summary |= average("right_answer_wrong_box", ~box_right[has_box & right])
    return summary | average("wrong_answer_right_box", box_right[has_box & ~right])


def _iou(boxes: Sequence, references: Sequence) -> np.ndarray:
    """IoU of each box with its reference, float [N]; 0 where either is missing."""
    none = (0.0, 0.0, 0.0, 0.0)
    both = np.array([a is not None and b is not None for a, b in zip(boxes, references, strict=True)], bool)
    given, wanted = (np.array([box or none for box in side], np.float32) for side in (boxes, references))
    return masked_iou(given, wanted, both)


def scored(benchmark: Benchmark, records: Sequence[Record], without: Sequence[Record] = ()) -> dict[str, Any]:
    """The summary of records by a benchmark; those with faults don't count, other than as `unreadable`.

    Args:
        without: records of the same questions without crops; then `crops` compares both, over the questions that are in both:
            accuracy before and after the crop by the official rule, and how many answers it fixed and broke.
    """
    good = [record for record in records if not record.fault]
    summary = benchmark.summarize(good, benchmark.score(good))
    before = {record.id: record for record in without if not record.fault}
    after = [record for record in good if record.id in before]
    if after:
        first = np.asarray(benchmark.score([before[record.id] for record in after]).official) == 1
        last = np.asarray(benchmark.score(after).official) == 1
        summary["crops"] = (
            {"questions": len(after)}
            | average("before", first)
            | average("after", last)
            | {"fixed": int((last & ~first).sum()), "broken": int((first & ~last).sum())}
        )
    return summary | {"unreadable": len(records) - len(good)}
