"""Rows as a table to read in a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from .results import Row

_HEADER = ("case", "dtype", "batch", "impl", "metric", "median", "p20", "p80", "samples")


def text(rows: Iterable[Row]) -> str:
    table = [_HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(_HEADER))]
    lines = ("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table)
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    value = f"{row.value} {row.unit}"
    case = (row.case, row.dtype, row.batch, row.impl, row.metric)
    return (*case, value, row.p20, row.p80, row.samples)
