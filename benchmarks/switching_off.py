"""What ``python -m benchmarks verdict DIR --write`` proposes to switch off on a GPU: an engine with
wrong outputs or with none (it faults, hangs, does not compile), and an operator at each shape where
it is slower than what it replaces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from effv2_kernels.launch import off_tables, op_numbers
from effv2_kernels.launch.off_tables import ANY, Entry

from .ops.cases import SUITES as OPERATORS
from .ops.cases import Case
from .results import NO_DEVICE, Row
from .suites.operators import BASELINES, in_networks

#: Slower is what is below this at its 80th percentile: less is as good as equal.
_ENOUGH = 0.95
#: A figure holds for batches that are not farther from the measured one than this, as tuned
#: launches do.
_FARTHEST = 4
NONE: Mapping[tuple[str, str], str] = MappingProxyType({})
_SPEEDUPS = tuple(f"speedup_vs_{name}" for name in BASELINES)


def write(rows: Iterable[Row], folder: Path, broken: Mapping[tuple[str, str], str] = NONE) -> str:
    """Put what is proposed into the tables in ``folder``; returns what was written, and where.
    broken: (op, engine) whose tests came to no figures, with the reason, on the GPU of the rows."""
    lines = []
    rows = list(rows)
    found = proposed(rows)
    if len(found) == 1:
        ((entries, _),) = found.values()
        commit = next(row.commit for row in rows if row.gpu in found)
        known = {(entry.op, entry.engine) for entry in entries if not entry.shape}
        entries += [
            Entry(op, engine, ANY, (), f"wrong: {why[:100]}", commit)
            for (op, engine), why in broken.items()
            if (op, engine) not in known
        ]
    for gpu, (entries, unknown) in found.items():
        path = off_tables.path_of(gpu, folder)
        if entries:
            off_tables.write(path, entries)
        lines.append(f"{len(entries)} entries into {path}" if entries else f"{gpu}: nothing to do")
        lines += [f"  {entry.op}: {entry.text(gpu)}" for entry in entries]
        lines += [f"  left out, for it is of no network here: {name}" for name in unknown]
    return "\n".join(lines) or "nothing was measured on a GPU"


def proposed(rows: Iterable[Row]) -> dict[str, tuple[list[Entry], list[str]]]:
    """For each GPU: the entries, and the slow cases whose shape is not known."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.gpu != NO_DEVICE and not row.gpu.startswith("CPU "):
            found.setdefault(row.gpu, []).append(row)
    return {gpu: _of_gpu(own) for gpu, own in found.items()}


def _of_gpu(rows: list[Row]) -> tuple[list[Entry], list[str]]:
    entries, unknown = list(_wrong(rows)), []
    measured = _measured(rows)
    for (suite, name, dtype), batches in measured.items():
        case = in_networks(suite).get(name)
        for batch, speedups in sorted(batches.items()):
            best = max(speedups, key=lambda row: float(row.p80))
            if float(best.p80) >= _ENOUGH:
                continue
            if case is None:
                unknown.append(f"{suite} {name}, batch {batch}, {dtype}")
            else:
                shape = (*_shape(case), *_bounds(batch, batches))
                reason = f"slower: {float(best.value):.2f}x"
                # The engines behind the first are not measured; what was replaced is, and faster.
                entries.append(Entry(case.op, ANY, dtype, shape, reason, best.commit))
    return entries, unknown


def _wrong(rows: Iterable[Row]) -> Iterator[Entry]:
    """Of the tests of ops; those of whole networks say nothing of a single op."""
    counts = {(r.case, r.impl, r.dtype, r.metric): r for r in rows if r.suite == "correctness"}
    for (op, engine, dtype, metric), row in counts.items():
        known = op in op_numbers.OPS and engine in off_tables.ENGINES and dtype in off_tables.DTYPES
        if metric == "wrong_outputs" and known and float(row.value) > 0:
            outputs = counts.get((op, engine, dtype, "outputs"))
            of_all = f" of {outputs.value}" if outputs else ""
            yield Entry(op, engine, dtype, (), f"wrong: {row.value}{of_all} outputs", row.commit)


Measured = dict[tuple[str, str, str], dict[int, list[Row]]]


def _measured(rows: Iterable[Row]) -> Measured:
    """By (suite, case, dtype) and batch: how our operator compares with what it replaces."""
    found: Measured = {}
    for row in rows:
        if row.suite in OPERATORS and row.impl == "effv2" and row.metric in _SPEEDUPS:
            batches = found.setdefault((row.suite, row.case, row.dtype), {})
            batches.setdefault(int(row.batch), []).append(row)
    return found


def _shape(case: Case) -> Iterator[tuple[str, int]]:
    numbers = op_numbers.numbers_of(case.op, case.outline(batch=1))
    return ((name, value) for name, value in numbers.items() if name != "batch")


def _bounds(batch: int, measured: Iterable[int]) -> Iterator[tuple[str, int]]:
    """The batches that a figure of ``batch`` holds for: up to half way (geometrically) to the next
    ones that were measured, and no farther than _FARTHEST times."""
    below = max((b for b in measured if b < batch), default=0)
    above = min((b for b in measured if b > batch), default=math.inf)
    least = max(batch / _FARTHEST, math.sqrt(below * batch))
    most = min(batch * _FARTHEST, math.sqrt(batch * above))
    yield "least_batch", max(1, math.ceil(least))
    yield "most_batch", math.floor(most)
