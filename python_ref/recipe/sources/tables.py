"""A folder with a table of its images, as Hugging Face's ``imagefolder`` writes them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..extras import extra
from .source import Files, number

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_COLUMNS = ("file_name", "label")


def find_table(folder: Path) -> Path | None:
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def open_table(table: Path, classes: Sequence[str] | None = None) -> Files:
    """The images that a table names, by their paths from its folder.

    Columns: ``file_name``, and ``label``: a name or number, or several of them as a list, or as one
    text between ``|``. classes: those of training. Raises RecipeError.
    """
    rows = _rows(table)
    if not rows:
        raise RecipeError(f"{table} names no image")
    for column in _COLUMNS:
        missing = next((row for row in rows if row.get(column) in (None, "", [])), None)
        if missing is not None:
            raise RecipeError(_without(table, column, missing))
    paths = [str(row["file_name"]) for row in rows]
    absent = next((path for path in paths if not (table.parent / path).is_file()), None)
    if absent is not None:
        raise RecipeError(f"{table} names {absent}, and there is no such file")
    classes, labels = number([_labels(row["label"]) for row in rows], classes, str(table))
    return Files(str(table.parent), paths, labels, classes)


def _without(table: Path, column: str, row: dict[str, Any]) -> str:
    if column in row:
        return f"{table} has a row without {column}: {row}"
    return f"{table} has no column {column!r}; it has {', '.join(map(repr, row))}"


def _labels(cell: Any) -> list[str]:
    if isinstance(cell, str):
        return [part.strip() for part in cell.split("|")]
    return [str(part) for part in (cell if isinstance(cell, (list, tuple)) else (cell,))]


def _rows(table: Path) -> list[dict[str, Any]]:
    try:
        if table.suffix == ".csv":
            with open(table, newline="", encoding="utf-8-sig") as file:
                return list(csv.DictReader(file))
        if table.suffix == ".jsonl":
            lines = table.read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines if line.strip()]
        with extra("pyarrow"):
            from pyarrow import parquet
        return parquet.read_table(table).to_pylist()
    except (OSError, ValueError, csv.Error) as error:
        raise RecipeError(f"{table} cannot be read: {error}") from error
