"""``python -m benchmarks compare A.csv B.csv``: what moved between two runs, and what only
wobbled."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from . import results
from .results import Row

HELP = "two CSV files: ratios, and what really moved"

#: Metrics of which less is better; of all others more is.
_LESS_IS_BETTER = ("ms", "us", "MB", "MB/image", "bytes", "registers")


@dataclass(frozen=True)
class Moved:
    """One number in both files. ratio: new over old; verdict: "better", "worse" or "" where the
    spreads (20th to 80th percentile) of the two overlap."""

    old: Row
    new: Row
    ratio: float
    verdict: str


def between(old: list[Row], new: list[Row]) -> list[Moved]:
    """Every number that both files have, in the order of the new one."""
    before = {row.key: row for row in old}
    return [_moved(before[row.key], row) for row in new if row.key in before]


def _moved(old: Row, new: Row) -> Moved:
    value = float(old.value)
    ratio = float(new.value) / value if value else float("nan")
    low, high = float(old.p20), float(old.p80)
    apart = float(new.p20) > high or float(new.p80) < low
    if not apart:
        return Moved(old, new, ratio, "")
    rose = float(new.value) > value
    return Moved(old, new, ratio, "worse" if rose == (new.unit in _LESS_IS_BETTER) else "better")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--all", action="store_true", help="show what did not move, too")


def command(arguments: argparse.Namespace) -> int:
    """Exit status 1 if anything got worse by more than its spread, 2 if nothing is in both."""
    moved = between(results.read(arguments.old), results.read(arguments.new))
    if not moved:
        print("no number is in both files")
        return 2
    for entry in moved:
        if entry.verdict or arguments.all:
            row = entry.new
            case = ", ".join(p for p in (row.suite, row.case, row.impl, row.dtype, row.batch) if p)
            change = f"{entry.old.value} -> {row.value} {row.unit}".rstrip()
            print(f"{entry.verdict or '=':<7}{entry.ratio:6.3f}x  {row.metric}: {change}  ({case})")
    counts = {v: sum(m.verdict == v for m in moved) for v in ("better", "worse", "")}
    print(f"{counts['better']} better, {counts['worse']} worse, {counts['']} within their spread")
    return int(counts["worse"] > 0)
