"""``python -m benchmarks correctness CHECKS``: what the GPU tests found, as rows and as a verdict.

CHECKS is what ``tests/gpu/conftest.py`` leaves behind: one JSON object a test, with the error of
each output beside PyTorch's own. A test that was run again counts as it came out last.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from effv2_kernels.cli.agreement import TINY
from effv2_kernels.cli.timing import quantiles

from . import results
from .results import Row

HELP = "what the GPU tests found: a verdict, and rows of the CSV file"
_MOST_FAILURES = 16
_WORST = 1e9
Record = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checks", nargs="?", type=Path, help="(default: the file that EFFV2_CHECKS names)"
    )
    parser.add_argument("--device", default="cuda", help="that computed (default: %(default)s)")


def command(arguments: argparse.Namespace) -> int:
    """The rows go into the results.csv beside the file. Exit status 1 if anything failed or nothing
    was checked."""
    path = arguments.checks or Path(os.environ["EFFV2_CHECKS"])
    records = read(path)
    results.upsert(path.with_name("results.csv"), rows(records, torch.device(arguments.device)))
    print(text(records))
    return int(not records or any(record["outcome"] == "failed" for record in records))


def read(path: Path) -> list[Record]:
    """The records of a file, the last of each test; none if it does not exist."""
    lines = path.read_text().splitlines() if path.exists() else []
    return merged(json.loads(line) for line in lines)


def merged(records: Iterable[Record]) -> list[Record]:
    """One record a test: the last. A failure without checks came after the test's own report, by
    what it left behind or by the worker that it killed: it is added to that."""
    found: dict[str, Record] = {}
    for record in records:
        before = found.pop(record["test"], None)
        if before and record["outcome"] == "failed" and not record["checks"]:
            record = {**record, "checks": before["checks"]}
            record["message"] = before["message"] or record["message"]
        found[record["test"]] = record
    return list(found.values())


def rows(records: Iterable[Record], device: torch.device) -> Iterator[Row]:
    """For each op, engine and dtype: outputs checked, outputs that were wrong, and the worst error
    over PyTorch's own, of which more than 2 is wrong."""
    for (op, engine, dtype), checks in _groups(records).items():
        make = results.maker(
            device, suite="correctness", case=op, batch=0, resolution=0, dtype=dtype
        )
        yield make(engine, "outputs", "", quantiles([len(checks)]))
        yield make(engine, "wrong_outputs", "", quantiles([sum(not c["passed"] for c in checks)]))
        yield make(engine, "worst_error_over_pytorch", "", quantiles([max(map(_ratio, checks))]))


def text(records: Sequence[Record], most: int | None = None) -> str:
    """The verdict: a line for each op, engine and dtype, or for the ``most`` that err most beside
    PyTorch; then one for each failure."""
    lines = [f"{'op':<20} {'engine':<7} {'dtype':<9} {'outputs':>7} {'wrong':>6}  worst/PyTorch's"]
    groups = _groups(records)
    worst = {key: max(map(_ratio, checks)) for key, checks in groups.items()}
    shown = set(sorted(worst, key=lambda key: -worst[key])[:most])
    for (op, engine, dtype), checks in groups.items():
        if (op, engine, dtype) not in shown:
            continue
        wrong, ratio = sum(not check["passed"] for check in checks) or "-", worst[op, engine, dtype]
        lines.append(f"{op:<20} {engine:<7} {dtype:<9} {len(checks):>7} {wrong:>6}  {ratio:.3g}")
    if rest := worst.keys() - shown:
        least = max(worst[key] for key in rest)
        lines.append(f"and {len(rest)} more, {least:.3g} at most")
    failed = [record for record in records if record["outcome"] == "failed"]
    lines.append(f"{len(records)} tests, {len(failed)} failed")
    for record in failed[:_MOST_FAILURES]:
        name = record["test"].removeprefix("tests/gpu/")
        lines.append(f"FAILED {name}: {_why(record)}"[:200])
    if len(failed) > _MOST_FAILURES:
        lines.append(f"and {len(failed) - _MOST_FAILURES} more")
    return "\n".join(lines)


def _groups(records: Iterable[Record]) -> dict[tuple[str, str, str], list[Record]]:
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        for check in record["checks"]:
            found.setdefault((check["op"], check["engine"], check["dtype"]), []).append(check)
    return dict(sorted(found.items()))


def _ratio(check: Record) -> float:
    """The error in units of what PyTorch errs: 2 is what may pass. NaN counts as the worst."""
    ratio = check["error"] / (check["pytorch"] + TINY / 2)
    return min(ratio, _WORST) if ratio == ratio else _WORST


def _why(record: Record) -> str:
    wrong = [check for check in record["checks"] if not check["passed"]]
    if not wrong:
        return record["message"]
    errors = f"{wrong[0]['error']:.1e}, PyTorch's {wrong[0]['pytorch']:.1e}"
    return f"error {errors} ({wrong[0]['case']})"
