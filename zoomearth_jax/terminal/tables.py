"""Tables on a terminal."""

from __future__ import annotations


def table(rows: list[dict]) -> str:
    """Rows under each other, numbers right-aligned with three significant digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def _cell(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
