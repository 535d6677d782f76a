"""Tables of summaries, whatever figures they hold: plain ones, intervals, and tables by kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_TABLE = "by_"  # how the keys of tables begin
_COSTS = {
    "seconds_per_sample": "seconds per question",
    "tokens_per_sample": "tokens per question",
    "visual_tokens_per_sample": "visual tokens per question",
}


class Table(NamedTuple):
    """A table: the columns after the first, and rows of a name and the texts of its cells."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def summary_tables(runs: Mapping[str, Mapping[str, Any]], published: Mapping[str, Mapping[str, float]]) -> list[Table]:
    """The headline figures of runs beside each other, then a table for each kind.

    Args:
        runs: name -> an entry of `runs` in results.json: `summary`, and what a question costs.
        published: model -> figures in percent, by the summary's keys; one of a table's row goes by "TABLE.ROW", such as
            "by_level.object", or by the row's name.
    """
    summaries = {name: joined(run.get("summary") or {}) for name, run in runs.items()}
    keys = list(dict.fromkeys(key for summary in summaries.values() for key in summary))
    kinds = [key for key in keys if key.startswith(_TABLE)]
    plain = [key for key in keys if key not in kinds]
    rows_of = {}
    for kind in kinds:
        own = [row for summary in summaries.values() for row in summary.get(kind) or {}]
        known = [
            key.removeprefix(f"{kind}.")
            for figures in published.values()
            for key in figures
            if key.startswith(f"{kind}.")
        ]
        rows_of[kind] = list(dict.fromkeys([*own, *known]))
    told = {f"{kind}.{row}": (f"{kind}.{row}", row) for kind in kinds for row in rows_of[kind]}
    known = set(plain) | {key for names in told.values() for key in names}
    others = [key for figures in published.values() for key in figures if key not in known]
    headline = [key for key in dict.fromkeys([*plain, *others])]
    rows = [
        (_words(key), [*(_cell(s.get(key)) for s in summaries.values()), *_published(published, (key,), headline)])
        for key in headline
    ]
    for key, label in _COSTS.items():
        costs = [run.get(key) for run in runs.values()]
        if any(cost is not None for cost in costs):
            blank = [""] * len(_models(published, headline))
            rows.append((label, [*("" if cost is None else f"{cost:,.3g}" for cost in costs), *blank]))
    tables = [Table("Results", [*runs, *_models(published, headline)], rows)] if rows else []
    return tables + [_kind_table(kind, rows_of[kind], summaries, published) for kind in kinds]


def joined(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary whose averages stand with their intervals as value, low and high (they come with `_interval` beside them), and
    which has no mappings other than these and tables."""
    result: dict[str, Any] = {}
    for key, value in summary.items():
        if key.startswith(_TABLE) and isinstance(value, Mapping):
            result[key] = {row: joined(entry) if isinstance(entry, Mapping) else entry for row, entry in value.items()}
        elif isinstance(value, Mapping) and not _is_interval(value):
            result |= {f"{key}_{name}": own for name, own in joined(value).items()}
        elif isinstance(summary.get(f"{key}_interval"), list | tuple):
            low, high = summary[f"{key}_interval"]
            result[key] = {"value": value, "low": low, "high": high}
        elif not key.endswith("_interval"):
            result[key] = value
    return result


def _kind_table(kind: str, names: list, summaries: Mapping[str, Mapping], published: Mapping[str, Mapping]) -> Table:
    cells = {
        run: {row: _metrics(entry) for row, entry in (summary.get(kind) or {}).items()}
        for run, summary in summaries.items()
    }
    columns = [
        (run, m) for run, own in cells.items() for m in dict.fromkeys(m for entry in own.values() for m in entry)
    ]
    first = next(iter(cells))
    counts = [{row: entry.get("count") for row, entry in own.items()} for own in cells.values()]
    if all(own == counts[0] for own in counts):  # stands once, at the end
        columns = [c for c in columns if c[1] != "count"] + [(first, "count")] * ((first, "count") in columns)
    wanted = [name for row in names for name in (f"{kind}.{row}", row)]
    rows = []
    for row in names:
        own = [_cell(cells[run].get(row, {}).get(metric)) for run, metric in columns]
        rows.append((str(row), [*own, *_published(published, (f"{kind}.{row}", row), wanted)]))
    alone = {metric for _, metric in columns if metric and [m for _, m in columns].count(metric) == 1}
    titles = [metric if metric in alone else f"{run} {metric}".strip() for run, metric in columns]
    return Table(_words(kind).replace("by", "By", 1), [*titles, *_models(published, wanted)], rows)


def _is_interval(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys()


def _metrics(entry: Any) -> Mapping[str, Any]:
    """The figures of a table's entry by their names; a bare one has no name."""
    return entry if isinstance(entry, Mapping) and not _is_interval(entry) else {"": entry}


def _cell(value: Any) -> str:
    """A figure: shares in percent, counts and others as numbers, an interval in brackets."""
    if _is_interval(value):
        if None in (value["low"], value["high"]):
            return _cell(value["value"])
        return f"{_cell(value['value'])} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{100 * value:.1f} %" if -1 <= value <= 1 else f"{value:,.4g}"


def _models(published: Mapping[str, Mapping], keys: list) -> list[str]:
    """The models that have published at least one of the figures."""
    return [model for model, figures in published.items() if any(key in figures for key in keys)]


def _published(published: Mapping[str, Mapping], names: tuple, keys: list) -> list[str]:
    """The cells of one row: of each model of `_models` its figure by the first name that it has."""
    found = [[published[m][name] for name in names if name in published[m]] for m in _models(published, keys)]
    return ["" if not figures else f"{figures[0]:.2f} %" for figures in found]


def _words(key: str) -> str:
    words = {"iou": "IoU", "apo": "APO"}
    return " ".join(words.get(word, word) for word in key.split("_"))
