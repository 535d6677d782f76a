"""The rows of a run's metrics.jsonl, read back; nothing here needs JAX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from zoomearth_jax.errors import UserError

SCHEMA = 1  # raised when a metric changes its meaning


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line cut short by a crash is left out.

    Raises:
        UserError: rows of a later schema than this version knows.
    """
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
        if rows[-1].get("schema", SCHEMA) > SCHEMA:
            raise UserError(f"{path}: schema {rows[-1]['schema']}, this version reads {SCHEMA}; update zoomearth_jax")
    return rows


class FoundRows(NamedTuple):
    """What a metrics.jsonl holds: its rows, and the number of lines that are none or are of a later schema."""

    rows: list[dict[str, Any]]
    broken: int


def find_rows(path: Path) -> FoundRows:
    """All rows of a metrics.jsonl that can be read, wherever they stand, each step once, the last one that was written.

    Raises:
        UserError: the file is there and can't be read.
    """
    rows: dict[int, dict[str, Any]] = {}
    broken = 0
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from None
    for line in text.splitlines():
        try:
            row = json.loads(line)
            if row.get("schema", SCHEMA) > SCHEMA or type(row["step"]) is not int:
                raise ValueError
            rows[row["step"]] = row
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            broken += 1
    return FoundRows([rows[step] for step in sorted(rows)], broken)
