"""``python -m benchmarks verdict DIR``: what a GPU run found, in few lines: what is wrong, what a
network gains, which operators lose to what they replace, and how far each is from its floor.
``--write`` switches off what is wrong or loses (see ``switching_off``)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from effv2_kernels.launch import tables

from . import correctness, results, switching_off
from .ops.cases import SUITES as OPERATORS
from .results import Row

PARTS = ("check", "speed", "more")
#: Characters of a verdict that is the end of a long output: of what a GPU machine prints, some
#: 12,000 come back.
LIMIT = 5900
_NETWORKS = ("latency", "models", "train")
_BASELINES = ("eager_nhwc", "compile_default", "compile_reduce_overhead", "compile_max_autotune")
_WIDTH = 200

HELP = "what a GPU run found, in few lines"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="with its results.csv and checks.jsonl")
    parser.add_argument("--short", action="store_true", help=f"{LIMIT} characters at most")
    parser.add_argument("--write", nargs="?", type=Path, const=tables.FOLDER, metavar="FOLDER",
                        help="put what is wrong or slow into FOLDER's <gpu>.off.json, by default "
                             "where dispatch reads it")  # fmt: skip


def command(arguments: argparse.Namespace) -> int:
    print(text(arguments.folder, limit=LIMIT if arguments.short else None))
    if arguments.write is not None:
        rows = results.read(arguments.folder / "results.csv")
        broken = correctness.faulty(correctness.read(arguments.folder / "checks.jsonl"))
        print("", switching_off.write(rows, arguments.write, broken), sep="\n")
    return 0


def text(
    folder: Path,
    parts: Sequence[str] = PARTS,
    failed: Sequence[str] = (),
    commit: str | None = None,
    limit: int | None = None,
) -> str:
    """What the results.csv and the checks.jsonl in ``folder`` say, of some parts of ``make gpu``.
    failed: lines on steps that failed; commit: whose rows count, None for all; limit: characters,
    for which the longest tables lose their ends."""
    rows = results.read(folder / "results.csv")
    rows = [row for row in rows if commit is None or row.commit == commit]
    records = correctness.read(folder / "checks.jsonl", commit)
    sections: list[list[str]] = []
    if "check" in parts:
        sections += [correctness.groups(records), correctness.failures(records)]
    if parts != ["check"]:
        sections.append(left_out(records))
    sections.append(networks(rows, ("latency", *(("models",) if parts != ["check"] else ()))))
    if "speed" in parts:
        sections += [slower(rows), floors(rows)]
    if "more" in parts:
        sections += [networks(rows, ("train",)), others(rows), tuned(rows)]
    sections.append([f"{len(failed)} steps failed", *failed] if failed else [])
    shown = [[line[:_WIDTH] for line in lines] for lines in sections if lines]
    return "\n\n".join("\n".join(lines) for lines in fitted(shown, limit))


def fitted(sections: Sequence[Sequence[str]], limit: int | None) -> list[list[str]]:
    """The sections, the longest of them without their last lines, so that all have ``limit``
    characters at most. A section keeps its heading and its first line; what the tests found is
    cut when it is two or three times as long as any other."""
    kept = [len(lines) for lines in sections]

    def shown(number: int) -> list[str]:
        lines, count = sections[number], kept[number]
        rest = len(lines) - count
        return [*lines[:count], *([f"and {rest} more"] if rest else [])]

    def size(number: int) -> int:
        return sum(len(line) + 1 for line in shown(number)) + 1

    def weighed(number: int) -> float:
        failed = sections[number][-1].startswith("FAILED")
        return size(number) / (3 if failed else 2 if sections[number][0].startswith("op  ") else 1)

    numbers = range(len(sections))
    while limit is not None and sum(map(size, numbers)) > limit:
        longest = max((n for n in numbers if kept[n] > 2), key=weighed, default=None)
        if longest is None:
            break
        kept[longest] -= 1
    return [shown(number) for number in numbers]


def left_out(records: Iterable[correctness.Record]) -> list[str]:
    """What was not measured, and networks were measured without, because its tests failed."""
    found = correctness.faulty(records)
    lines = [f"{op} {engine}: {why[:60]}" for (op, engine), why in found.items()]
    return ["not measured, for tests failed:", *lines] if lines else []


def networks(rows: Iterable[Row], suites: Sequence[str] = _NETWORKS) -> list[str]:
    """One line for each implementation of each network: time, and gains."""
    lines = []
    for key, cells in _implementations(rows, suites).items():
        time = cells.get("latency_ms") or cells.get("step_ms")
        if time is not None:
            suite, case, batch, dtype, impl = key
            name = f"{suite} {case.partition(' ')[2]} batch {batch} {dtype} {impl}"
            lines.append(f"{name:<66} {float(time.value):>9.3f} ms{_gains(cells)}")
    return lines


def slower(rows: Iterable[Row]) -> list[str]:
    """Our operators at the shapes where they lose to the best of what they replace, the worst
    first."""
    lines, count = [], 0
    for key, cells in _operators(rows):
        gains = [float(c.value) for m, c in cells.items() if m.startswith("speedup_vs_")]
        count += 1
        if gains and min(gains) < 1:
            suite, case, batch, dtype, _ = key
            time = f"{float(cells['latency_us'].value):>8.1f} us"
            name = f"{suite} {case} batch {batch} {dtype}"
            lines.append((min(gains), f"{name:<70} {time}{_gains(cells)}"))
    heading = f"{len(lines)} of {count} operators' shapes are slower than what they replace"
    return [heading, *(line for _, line in sorted(lines))] if count else []


def floors(rows: Iterable[Row]) -> list[str]:
    """One line for each operator: how far it is from its floor."""
    found: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
    for (suite, case, batch, dtype, _), cells in _operators(rows):
        if "part_of_floor" in cells:
            part = 100 * float(cells["part_of_floor"].value)
            found.setdefault((suite, batch, dtype), []).append((part, case))
    lines = []
    for (suite, batch, dtype), parts in found.items():
        (least, worst), (most, _) = min(parts), max(parts)
        name = f"{suite} batch {batch} {dtype}, {len(parts)} shapes"
        middle = median(part for part, _ in parts)
        lines.append(f"{name:<46} {least:4.0f} {middle:6.0f} {most:6.0f}   worst: {worst}")
    return [f"{'% of the floor':<46} {'min':>4} {'median':>6} {'max':>6}", *lines] if lines else []


def others(rows: Iterable[Row]) -> list[str]:
    """Memory, and the paper's comparisons: our value of each metric."""
    mine = [r for r in rows if r.suite in ("memory", "placement", "headline") and "effv2" in r.impl]
    return [f"{r.suite} {r.case} {r.impl}: {r.metric} {r.value} {r.unit}" for r in mine]


def tuned(rows: Iterable[Row]) -> list[str]:
    """What tuning gained, the most first."""
    times: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        if row.suite == "tune":
            times.setdefault((row.case, row.batch, row.dtype), {})[row.impl] = float(row.value)
    gains = [
        (found["effv2_untuned"] / found["effv2"], f"{case} batch {batch} {dtype}", found["effv2"])
        for (case, batch, dtype), found in times.items()
        if len(found) == 2
    ]
    lines = [f"{name:<70} {time:>8.1f} us  {gain:.2f}x" for gain, name, time in sorted(gains)[::-1]]
    return ["tuned, and how many times as fast as untuned", *lines] if lines else []


def _operators(rows: Iterable[Row]) -> Iterator[tuple[tuple[str, ...], dict[str, Row]]]:
    for key, cells in _implementations(rows, OPERATORS).items():
        if key[-1] == "effv2":
            yield key, cells


def _implementations(
    rows: Iterable[Row], suites: Iterable[str]
) -> dict[tuple[str, ...], dict[str, Row]]:
    """By (suite, case, batch, dtype, impl): the rows by their metric."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        if row.suite in suites:
            key = row.suite, row.case, row.batch, row.dtype, row.impl
            found.setdefault(key, {})[row.metric] = row
    return found


def _gains(cells: dict[str, Row]) -> str:
    found = ((name, cells.get(f"speedup_vs_{name}")) for name in _BASELINES)
    return "".join(
        f"  {float(row.value):.2f}x {name.replace('compile_', '')}" for name, row in found if row
    )
