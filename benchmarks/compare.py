"""``python -m benchmarks compare A.csv B.csv``: what moved between two runs, and what only
wobbled."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from . import results
from .results import Row

HELP = "two CSV files: ratios, and what really moved"

#: Units of which less is better; of UP more is. What has another unit only moves.
_DOWN = ("ms", "us", "MB", "MB/image")
_UP = ("x", "images/s", "GB/s", "TFLOP/s")
#: What a number that was read once may move by.
_ONCE = 0.02


@dataclass(frozen=True)
class Moved:
    """One number in both files. ratio: new over old; verdict: "better", "worse", "other" where
    neither direction is, or "" where the spreads (20th to 80th percentile) of the two overlap."""

    old: Row
    new: Row
    ratio: float
    verdict: str


def between(old: list[Row], new: list[Row]) -> list[Moved]:
    """Every number that both files have, in the order of the new one."""
    before = {row.key: row for row in old if row.p20}
    return [_moved(before[row.key], row) for row in new if row.p20 and row.key in before]


def gone(old: list[Row], new: list[Row]) -> list[Row]:
    """What only the old file has of the suites that both have."""
    suites, found = {row.suite for row in new}, {row.key for row in new}
    return [row for row in old if row.suite in suites and row.key not in found]


def _moved(old: Row, new: Row) -> Moved:
    value = float(old.value)
    ratio = float(new.value) / value if value else float("nan")
    (low, high), (new_low, new_high) = _spread(old), _spread(new)
    if not (new_low > high or new_high < low) or ratio == 1:
        return Moved(old, new, ratio, "")
    if new.unit not in (*_DOWN, *_UP):
        return Moved(old, new, ratio, "other")
    rose = float(new.value) > value
    return Moved(old, new, ratio, "worse" if rose == (new.unit in _DOWN) else "better")


def _spread(row: Row) -> tuple[float, float]:
    low, high = float(row.p20), float(row.p80)
    if row.samples == "1":
        return low * (1 - _ONCE), high * (1 + _ONCE)
    return low, high


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--all", action="store_true", help="show what did not move, too")


def command(arguments: argparse.Namespace) -> int:
    """Exit status 1 if anything got worse by more than its spread or is gone, 2 if nothing is in
    both."""
    old, new = results.read(arguments.old), results.read(arguments.new)
    moved, missing = between(old, new), gone(old, new)
    if not moved:
        print("no number is in both files")
        return 2
    for entry in moved:
        if entry.verdict or arguments.all:
            row = entry.new
            case = ", ".join(p for p in (row.suite, row.case, row.impl, row.dtype, row.batch) if p)
            change = f"{entry.old.value} -> {row.value} {row.unit}".rstrip()
            print(f"{entry.verdict or '=':<7}{entry.ratio:6.3f}x  {row.metric}: {change}  ({case})")
    for row in missing:
        print(
            f"gone     {row.metric} ({row.suite}, {row.case}, {row.impl}, {row.dtype}, {row.batch})"
        )
    counts = {v: sum(m.verdict == v for m in moved) for v in ("better", "worse", "other", "")}
    shown = f"{counts['better']} better, {counts['worse']} worse, {counts['other']} otherwise moved"
    print(f"{shown}, {counts['']} within their spread, {len(missing)} gone")
    return int(counts["worse"] > 0 or bool(missing))
