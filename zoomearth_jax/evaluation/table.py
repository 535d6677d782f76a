"""A summary as lines of text: averages in percent with their 95 % intervals, tables by kind, and published figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORDS = {  # scalar figures, in the order of the lines
    "official": "accuracy",
    "official_macro": "  mean of groups",
    "official_micro": "  mean of questions",
    "unparsed": "unparsed",
    "no_answer": "no <answer>",
    "truncated": "truncated",
    "zoom_rate": "zoom rate",
    "broken_box": "broken box",
    "apo_iou": "APO IoU, boxes",
    "apo_iou_window": "APO IoU, windows",
    "zoom_precision": "zoom precision",
    "zoom_recall": "zoom recall",
    "right_answer_wrong_box": "right answers with a wrong box",
    "wrong_answer_right_box": "wrong answers with a right box",
}
_LABEL, _CELL = 36, 22  # characters; labels grow with the names of groups


def lines(
    title: str,
    runs: Mapping[str, Mapping[str, Any]],
    total: int | None = None,
    published: Mapping[str, Mapping[str, float]] | None = None,
) -> list[str]:
    """The lines of a table with two columns for each run, by the official rule and by the strict one; and one for the first of the
    models that figures are published of. The others follow.

    Args:
        runs: name -> summary (see `figures.scored`).
        total: questions of the benchmark, where these aren't all.
        published: model -> figures in percent, by the summary's keys; `by_level.global` is the row of a table.
    """
    first = next(iter(runs.values()))
    models = dict(published or {})
    known = models.pop(next(iter(models))) if models else {}
    tables = {key: first[key] for key in first if key.startswith("by_")}
    width = max([_LABEL, *(len(name) + 12 for table in tables.values() for name in table)])
    heads = [f"{name}, {rule}" if len(runs) > 1 else rule for name in runs for rule in ("official", "strict")]

    def line(label: str, key: str, cells: list[str]) -> str:
        cells = [*cells, f"{known[key]:.2f}" if key in known else ""]
        return (f"{label:{width}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)).rstrip()

    result = [_title(title, first, total), line("", "", [*heads, "published"] if known else heads)]
    for key, words in _WORDS.items():
        if any(key in run for run in runs.values()):
            strict = key.replace("official", "strict") if key.startswith("official") else ""
            result.append(line(words, key, [_cell(run, name) for run in runs.values() for name in (key, strict)]))
    for table, groups in tables.items():
        result.append(table.replace("_", " "))
        for name, row in groups.items():
            rows = [run.get(table, {}).get(name, {}) for run in runs.values()]
            cells = [_cell(each, rule) for each in rows for rule in ("official", "strict")]
            result.append(line(f"  {name} ({row['count']:,})", f"{table}.{name}", cells))
    for name, run in runs.items():
        result += [_crops(f" of {name}" if len(runs) > 1 else "", run["crops"])] if "crops" in run else []
    if published:
        result.append(f"published: {next(iter(published))}")
    return result + [
        f"published, {model}: {', '.join(f'{_words(key)} {value:.2f}' for key, value in values.items())}"
        for model, values in models.items()
    ]


def _title(title: str, summary: Mapping[str, Any], total: int | None) -> str:
    of = f" of {total:,}" if total is not None else ""
    unread = f", {summary['unreadable']:,} unreadable" if summary.get("unreadable") else ""
    return f"{title}: {summary['questions']:,}{of} questions{unread}; percent with 95 % intervals"


def _crops(of: str, crops: Mapping[str, Any]) -> str:
    return (
        f"crops{of}, over {crops['questions']:,} questions: accuracy {_cell(crops, 'before')} before, "
        f"{_cell(crops, 'after')} after; {crops['fixed']:,} answers fixed, {crops['broken']:,} broken"
    )


def _words(key: str) -> str:
    return _WORDS[key] if key in _WORDS else key.partition(".")[2]


def _cell(values: Mapping[str, Any], name: str) -> str:
    if values.get(name) is None:
        return ""
    low, high = values.get(f"{name}_interval", (None, None))
    return f"{100 * values[name]:.1f}" + ("" if low is None else f" [{100 * low:.1f}, {100 * high:.1f}]")
