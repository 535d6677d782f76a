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
        published: model -> figures in percent, by the summary's keys; `by_level.global` is the row of a table.
    """
    summaries = {name: joined(run.get("summary") or {}) for name, run in runs.items()}
    keys = list(dict.fromkeys(key for summary in summaries.values() for key in summary))
    kinds = [key for key in keys if key.startswith(_TABLE)]
    known = list(dict.fromkeys(key for figures in published.values() for key in figures))
    plain = [key for key in dict.fromkeys([*keys, *known]) if key.partition(".")[0] not in kinds]
    models = _models(published, plain)
    rows = [
        (_words(key), [*(_cell(s.get(key)) for s in summaries.values()), *_published(published, models, key)])
        for key in plain
    ]
    for key, label in _COSTS.items():
        costs = [run.get(key) for run in runs.values()]
        if any(cost is not None for cost in costs):
            cells = ["" if cost is None else f"{cost:,.3g}" for cost in costs]
            rows.append((label, [*cells, *([""] * len(models))]))
    tables = [Table("Results", [*runs, *models], rows)] if rows else []
    for kind in kinds:
        more = [key.removeprefix(f"{kind}.") for key in known if key.startswith(f"{kind}.")]
        names = dict.fromkeys([*(row for s in summaries.values() for row in s.get(kind) or {}), *more])
        tables.append(_kind_table(kind, list(names), summaries, published))
    return tables


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
    models = _models(published, [f"{kind}.{row}" for row in names])
    rows = []
    for row in names:
        own = [_cell(cells[run].get(row, {}).get(metric)) for run, metric in columns]
        rows.append((str(row), [*own, *_published(published, models, f"{kind}.{row}")]))
    alone = {metric for _, metric in columns if metric and [m for _, m in columns].count(metric) == 1}
    titles = [metric if metric in alone else f"{run} {metric}".strip() for run, metric in columns]
    return Table(_words(kind).replace("by", "By", 1), [*titles, *models], rows)


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


def _published(published: Mapping[str, Mapping], models: list[str], key: str) -> list[str]:
    """The cells of one row, of each model one."""
    return [f"{published[model][key]:.2f} %" if key in published[model] else "" for model in models]


def _words(key: str) -> str:
    words = {"iou": "IoU", "apo": "APO"}
    return " ".join(words.get(word, word) for word in key.split("_"))
