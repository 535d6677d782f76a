"""The page of an evaluation, and of a comparison of two: figures, plots, settings, every question with what was seen and said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoomearth_jax.reports.charts import Bar, bars, histogram
from zoomearth_jax.reports.episode_rows import (
    RIGHT_BOX,
    Evaluated,
    Recorded,
    Scored,
    episodes,
    scored_rows,
)
from zoomearth_jax.reports.gallery import MAX_BYTES, write_gallery
from zoomearth_jax.reports.summary_tables import Table, joined, summary_tables
from zoomearth_jax.reports.thumbnails import read_thumbnails

_FACTS = ("benchmark", "date", "seed", "commit", "hardware", "config_hash", "config", "versions", "counts")


def write_report(
    path,
    results: Mapping[str, Any],
    records: Mapping[str, Sequence[Recorded]],
    scores: Mapping[str, Scored],
    thumbnails: Sequence[Path] = (),
    max_bytes: int = MAX_BYTES,
) -> None:
    """Writes the page of an evaluation; the arguments are those of `Evaluated`.

    Args:
        path: of the page.
        max_bytes: about how large it may be; questions that find no room for their thumbnails go without, and the page says
            how many.

    Raises:
        UserError: the page can't be written.
    """
    run = Evaluated(results, records, scores, thumbnails)
    rows = {name: scored_rows(records[name], scores[name]) for name in records}
    summaries = {name: results.get("runs", {}).get(name, {}) for name in records}
    found = episodes(list(rows.values()), whole=False)
    title = str(results.get("title") or results.get("benchmark") or "Evaluation")
    _write(
        path,
        found,
        [read_thumbnails(*thumbnails)],
        max_bytes,
        title=title,
        names=list(rows),
        compared=False,
        summary=_counted(results.get("counts", {}), len(found)),
        tables=summary_tables(summaries, results.get("published") or {}),
        charts=_charts(joined(summaries[run.main].get("summary") or {}), rows),
        facts=_facts(results),
    )


def write_comparison(path, a: Evaluated, b: Evaluated, names=("A", "B"), max_bytes: int = MAX_BYTES) -> None:
    """Writes the page that compares two evaluations question by question, those whose verdict differs first.

    Args:
        path, max_bytes: see `write_report`.
        a, b: of the same questions, which go by their ids; the page has those that both hold.
        names: what the two are called.

    Raises:
        UserError: the page can't be written.
    """
    rows = [scored_rows(run.records[run.main], run.scores[run.main]) for run in (a, b)]
    both = [id for id in rows[0] if id in rows[1]]
    paired = [{id: run[id] for id in both} for run in rows]
    found = sorted(episodes(paired, whole=True), key=_agrees)
    summaries = {name: run.results.get("runs", {}).get(run.main, {}) for name, run in zip(names, (a, b), strict=True)}
    only = [len(run) - len(both) for run in rows]
    published = {**(b.results.get("published") or {}), **(a.results.get("published") or {})}
    _write(
        path,
        found,
        [read_thumbnails(*run.thumbnails) for run in (a, b)],
        max_bytes,
        title=f"{names[0]} and {names[1]}: {a.results.get('title') or a.results.get('benchmark') or 'evaluation'}",
        names=list(names),
        compared=True,
        summary=_counted_pairs(found, only, names),
        tables=[paired_table(paired[0], paired[1], names), *summary_tables(summaries, published)],
        charts=_charts({}, dict(zip(names, paired, strict=True)), compared=True),
        facts=_facts(a.results, b.results),
    )


def _write(path, found: list[dict], thumbnails: Sequence, max_bytes: int, **values: Any) -> None:
    settings = {"names": values["names"], "compared": values["compared"], "right_box": RIGHT_BOX}
    write_gallery(
        path,
        "episodes",
        found,
        thumbnails,
        max_bytes,
        settings=settings,
        counted="episodes",
        placeholder="question, answer, id …",
        levels=sorted({e["level"] for e in found if "level" in e}),
        categories=sorted({e["category"] for e in found if "category" in e}),
        **values,
    )


def _agrees(episode: dict) -> bool:
    """Whether both runs have the same verdict on a question."""
    verdicts = [run and run["official"] == 1 for run in episode["runs"]]
    return verdicts[0] == verdicts[1]


def _counted_pairs(found: Sequence[dict], only: Sequence[int], names: Sequence[str]) -> str:
    """How many questions two runs share, and how many only one of them has right, in one line."""
    right = [[run is not None and run["official"] == 1 for run in episode["runs"]] for episode in found]
    wins = right.count([True, False]), right.count([False, True])
    line = f"{len(found):,} questions that both have; {wins[0]:,} are right only in {names[0]}, {wins[1]:,} only in {names[1]}"
    left = f"; left out: {only[0]:,} that only {names[0]} has, {only[1]:,} that only {names[1]} has"
    return line + left if any(only) else line


def paired_table(a: Mapping[str, dict], b: Mapping[str, dict], names: Sequence[str]) -> Table:
    """Means of both runs over the same questions, and the difference with its paired bootstrap interval of 95 %.

    Args:
        a, b: `scored_rows` of the same ids.
    """
    pairs = [(a[id], b[id]) for id in a if not a[id]["fault"] and not b[id]["fault"]]
    levels = sorted({x["level"] for x, _ in pairs})
    kinds = [("official", "official", None), ("strict", "strict", None)]
    kinds += [(f"official, {level}", "official", level) for level in levels if len(levels) > 1]
    kinds += [("IoU of boxes", "iou", None), ("zoomed", "zoomed", None)]
    rows = []
    for label, key, level in kinds:
        kept = [(x[key], y[key]) for x, y in pairs if level in (None, x["level"]) and None not in (x[key], y[key])]
        if kept:
            first, second = np.array(kept, float).T
            low, high = bootstrap(second - first)
            means = [f"{100 * values.mean():.1f} %" for values in (first, second)]
            difference = f"{100 * (second - first).mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            rows.append((label, [*means, difference, f"{len(kept):,}"]))
    columns = [*names, f"{names[1]} minus {names[0]}, points", "questions"]
    return Table("Paired difference, with intervals of 95 % by bootstrap over questions", columns, rows)


def bootstrap(values: np.ndarray, resamples: int = 2000) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the mean of values [N] over resamples of the questions; the same each time."""
    random = np.random.default_rng(0)
    means = [values[random.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _charts(summary: Mapping[str, Any], runs: Mapping[str, Mapping[str, dict]], compared: bool = False) -> list[dict]:
    """The plots: bars of each table of the summary, scores of all runs by level, and IoUs of the first, or of both compared."""
    charts = []
    for key, entries in summary.items():
        if key.startswith("by_") and isinstance(entries, Mapping):
            drawn = [bar for name, entry in entries.items() if (bar := _bar(str(name), entry))]
            charts += [bars(f"Official score by {key[3:].replace('_', ' ')}", drawn)] if drawn else []
    read = {name: [row for row in rows.values() if not row["fault"]] for name, rows in runs.items()}
    if len(runs) > 1:
        drawn = []
        for level in dict.fromkeys(row["level"] for rows in read.values() for row in rows):
            for kind, (name, rows) in enumerate(read.items()):
                scores = [row["official"] for row in rows if row["level"] == level]
                if scores:
                    mean = float(np.mean(scores))
                    drawn.append(Bar(f"{level}, {name}", mean, None, None, f"n = {len(scores):,}", kind % 4))
        charts.append(bars(f"Official score by level: {', '.join(runs)}", drawn))
    for kind, (name, rows) in enumerate(read.items() if compared else [next(iter(read.items()))]):
        due = [row["iou"] if row["box"] else None for row in rows if row["reference_box"]]
        if due:
            title = "IoU of the predicted and the reference box" + (f", {name}" if compared else "")
            charts.append(histogram(title, due, kind))
    return charts


def _bar(name: str, entry: Any) -> Bar | None:
    """A bar of an entry of a summary's table: a share, an interval, or scores with an `official` one."""
    count = entry.get("count") if isinstance(entry, Mapping) else None
    score = entry.get("official", entry) if isinstance(entry, Mapping) else entry
    span = score if isinstance(score, Mapping) else {"value": score}
    if not isinstance(span.get("value"), int | float):
        return None
    note = f"n = {count:,}" if isinstance(count, int) else ""
    return Bar(name, float(span["value"]), span.get("low"), span.get("high"), note)


def _counted(counts: Mapping[str, Any], shown: int) -> str:
    """How many questions there are, in one line."""
    total, scored = counts.get("total"), counts.get("scored", shown)
    parts = [f"{scored:,} questions" + (f" of {total:,}" if total and total != scored else "") + " scored"]
    parts += [f"{counts[key]:,} {name}" for key, name in _LEFT.items() if counts.get(key)]
    return "; ".join(parts)


_LEFT = {"unreadable": "whose image can't be read", "refused_rows": "rows of the file refused"}


def _facts(*results: Mapping[str, Any]) -> list[tuple[str, list[str], bool]]:
    """Settings and surroundings, flat: name, its value in each of the runs, and whether these differ."""
    flat = [_flat({key: one[key] for key in _FACTS if key in one}) for one in results]
    names = list(dict.fromkeys(name for one in flat for name in one))
    values = [(name, [one.get(name, "") for one in flat]) for name in names]
    rows = [(name, shown, len(set(shown)) > 1) for name, shown in values]
    return sorted(rows, key=lambda row: not row[2])


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        return {
            key: text
            for own, item in value.items()
            for key, text in _flat(item, f"{name}.{own}" if name else str(own)).items()
        }
    return {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}
