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

from effv2_kernels.launch.off_tables import ENGINES
from effv2_kernels.launch.op_numbers import OPS
from effv2_kernels.measuring.agreement import TINY
from effv2_kernels.measuring.timing import quantiles

from . import results
from .results import Row

HELP = "what the GPU tests found: a verdict, and rows of the CSV file"
_WORST = 1e9
# Characters of two messages that are the same: what comes behind is paths and numbers.
_ALIKE = 120
_NATIVE = ("stem", "depthwise_bias_act", "expand_depthwise", "squeeze_excite_gate")
#: The outcome of a file whose tests could not be collected: nobody knows what is right.
UNCOLLECTED = "uncollected"
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
    print("\n".join([*groups(records), *failures(records)]))
    return int(not records or any(record["outcome"] != "passed" for record in records))


def read(path: Path, commit: str | None = None) -> list[Record]:
    """The records of a file, of one commit or of all, the last of each test; none if it does not
    exist."""
    lines = path.read_text().split("\n") if path.exists() else []
    # Behind the last line end is nothing, or what a test was writing when it was killed.
    records = (json.loads(line) for line in lines[:-1])
    return merged(record for record in records if commit in (None, record.get("commit")))


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


def groups(records: Iterable[Record]) -> list[str]:
    """Under a heading, a line for each op, engine and dtype, those first that err most beside
    PyTorch."""
    lines = []
    for (op, engine, dtype), checks in _groups(records).items():
        wrong, worst = sum(not check["passed"] for check in checks), max(map(_ratio, checks))
        right = len(checks) - wrong
        line = f"{op:<20}{engine:<8}{dtype:<9}{right:>5}{wrong or '-':>6}  {worst:.3g}"
        lines.append((not wrong, -worst, line))
    heading = f"{'op':<20}{'engine':<8}{'dtype':<9}{'right':>5}{'wrong':>6}  worst / PyTorch's"
    return [heading, *(line for *_, line in sorted(lines))] if lines else []


def failures(records: Sequence[Record]) -> list[str]:
    """Under how many there are, a line for each file that could not be collected; for each test
    that failed, with its shape and figures; then one for all that came to no figures, for the same
    reason."""
    missing = [record for record in records if record["outcome"] == UNCOLLECTED]
    records = [record for record in records if record["outcome"] != UNCOLLECTED]
    failed = [record for record in records if record["outcome"] == "failed"]
    failed.sort(key=lambda record: all(check["passed"] for check in record["checks"]))
    alike: dict[str, list[Record]] = {}
    for record in failed:
        wrong = any(not check["passed"] for check in record["checks"])
        alike.setdefault(record["test"] if wrong else _why(record)[:_ALIKE], []).append(record)
    lines = [f"{len(records)} tests, {len(failed)} failed"] if records or missing else []
    lines += [f"NOT COLLECTED {record['test']}: {record['message']}" for record in missing]
    for first, *others in alike.values():
        rest = f" and {len(others)} more" if others else ""
        lines.append(f"FAILED {first['test'].removeprefix('tests/gpu/')}{rest}: {_why(first)}")
    return lines


def faulty(records: Iterable[Record], dtype: str = "bfloat16") -> dict[tuple[str, str], str]:
    """What ``dtype`` is better computed without: (op, engine), with what its first failed test
    found. Results that are wrong in another dtype only do not count; a test that failed without a
    result does (it did not compile, hung, or broke the context), by the names that it has, unless
    memory ran out."""
    found: dict[tuple[str, str], str] = {}
    for record in records:
        if record["outcome"] != "failed" or "out of memory" in record["message"].lower():
            continue
        wrong = [check for check in record["checks"] if not check["passed"]]
        keys = [(c["op"], c["engine"]) for c in wrong if c["dtype"] == dtype]
        for op, engine in keys if wrong else _named(record["test"]):
            if op in OPS and engine in ENGINES:
                found.setdefault((op, engine), _why(record))
    return found


def engine_of(op: str) -> str:
    """Which engine dispatch takes where both have a kernel."""
    return "cuda" if op in _NATIVE else "triton"


def _named(test: str) -> Iterator[tuple[str, str]]:
    """The op that a test's id names, and the engine: Triton where it says so or has no rival."""
    op = max((op for op in OPS if op in test), key=len, default="")
    if op:
        yield op, "triton" if "triton" in test else engine_of(op)


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
