"""``python -m benchmarks verdict DIR``: what a GPU run found, in few lines: what is wrong, what a
network gains, which operators lose to what they replace, and how far each is from its floor.
``--write`` switches off what is wrong or loses (see ``switching_off``)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from effv2_kernels.launch import tables

from . import correctness, results, switching_off
from .ops.cases import SUITES as OPERATORS
from .results import Row

_NETWORKS = ("latency", "models", "train")
_BASELINES = ("eager_nhwc", "compile_default", "compile_reduce_overhead")
#: Lines of each table where the verdict is the end of a long output: of what a GPU machine prints,
#: some 12,000 characters come back.
SHORT = 20

HELP = "what a GPU run found, in few lines"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="with its results.csv and checks.jsonl")
    parser.add_argument("--write", nargs="?", type=Path, const=tables.FOLDER, metavar="FOLDER",
                        help="put what is wrong or slow into FOLDER's <gpu>.off.json, by default "
                             "where dispatch reads it")  # fmt: skip


def command(arguments: argparse.Namespace) -> int:
    print(text(arguments.folder))
    if arguments.write is not None:
        rows = results.read(arguments.folder / "results.csv")
        print("", switching_off.write(rows, arguments.write), sep="\n")
    return 0


def text(folder: Path, most: int | None = None) -> str:
    """Of the results.csv and the checks.jsonl in ``folder``; ``most`` lines of each table (None:
    all): the worst, and of networks the first."""
    rows = results.read(folder / "results.csv")
    records = correctness.read(folder / "checks.jsonl")
    parts = [correctness.text(records, most)] if records else []
    parts += [networks(rows, most), operators(rows, most)]
    return "\n\n".join(part for part in parts if part)


def networks(rows: Iterable[Row], most: int | None = None) -> str:
    """One line for each implementation of each network: time, and gains."""
    found = [row for row in rows if row.suite in _NETWORKS]
    lines = []
    for key in dict.fromkeys(_implementation(row) for row in found):
        cells = {row.metric: row for row in found if _implementation(row) == key}
        time = cells.get("latency_ms") or cells.get("step_ms")
        if time is None:
            continue
        suite, case, batch, dtype, impl = key
        name = f"{suite} {case.partition(' ')[2]} batch {batch} {dtype} {impl}"
        lines.append(f"{name:<72} {float(time.value):>9.3f} ms{_gains(cells)}")
    shown = lines[:most]
    if len(lines) > len(shown):
        shown.append(f"and {len(lines) - len(shown)} more")
    return "\n".join(shown)


def operators(rows: Iterable[Row], most: int | None = None) -> str:
    """Ours at every shape, or at ``most`` of them, those first that lose most to the best of what
    they replace."""
    mine = [row for row in rows if row.suite in OPERATORS and row.impl == "effv2"]
    lines = []
    for key in dict.fromkeys(_implementation(row) for row in mine):
        cells = {row.metric: row for row in mine if _implementation(row) == key}
        gains = [float(c.value) for m, c in cells.items() if m.startswith("speedup_vs_")]
        suite, case, batch, dtype, _ = key
        part = cells.get("part_of_floor")
        floor = f"{100 * float(part.value):5.0f} % of its floor" if part else ""
        time = f"{float(cells['latency_us'].value):>8.1f} us"
        name = f"{suite} {case} batch {batch} {dtype}"
        lines.append((min(gains, default=1.0), f"{name:<70} {time} {floor}{_gains(cells)}"))
    lines.sort(key=lambda pair: pair[0])
    shown = [line for _, line in lines[:most]]
    if len(lines) > len(shown):
        shown.append(
            f"and {len(lines) - len(shown)} more, each {lines[len(shown)][0]:.2f}x or more"
        )
    return "\n".join(shown)


def _implementation(row: Row) -> tuple[str, ...]:
    return row.suite, row.case, row.batch, row.dtype, row.impl


def _gains(cells: dict[str, Row]) -> str:
    found = ((name, cells.get(f"speedup_vs_{name}")) for name in _BASELINES)
    return "".join(
        f"  {float(row.value):.2f}x {name.replace('compile_', '')}" for name, row in found if row
    )
