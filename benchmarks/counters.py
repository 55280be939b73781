"""``python -m benchmarks counters``: what the hardware counters of a GPU say of the operators'
kernels, read by Nsight Compute (``ncu``): which unit is busy, and what warps wait for."""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from effv2_kernels.measuring.timing import quantiles

from . import options, results
from .gpu.run import cuda_tool
from .ops.cases import OP_OF
from .options import Options
from .results import Row
from .suites import operators

HELP = "hardware counters of the operators' kernels, by ncu"
#: Of Nsight Compute's sections, those that say what bounds a kernel.
_SECTIONS = (
    *("SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis"),
    *("LaunchStats", "Occupancy", "SchedulerStats", "WarpStateStats"),
)
_RANGE = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
_TIME = "gpu__time_duration.sum"  # nanoseconds
_PEAK = "avg.pct_of_peak_sustained_elapsed"
#: Our metrics: the unit, and ncu's name. Parts are of what the unit could do in that time.
METRICS = {
    "dram": ("%", f"gpu__dram_throughput.{_PEAK}"),
    "l2": ("%", f"lts__throughput.{_PEAK}"),
    "l2_hits": ("%", "lts__t_sector_hit_rate.pct"),
    "l1": ("%", "l1tex__throughput.avg.pct_of_peak_sustained_active"),
    "issue": ("%", f"sm__issue_active.{_PEAK}"),
    "tensor": ("%", f"sm__pipe_tensor_cycles_active.{_PEAK}"),
    "special": ("%", f"sm__inst_executed_pipe_xu.{_PEAK}"),
    "warps": ("%", "sm__warps_active.avg.pct_of_peak_sustained_active"),
    "registers": ("", "launch__registers_per_thread"),
}
_STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
#: That a warp issues, or could, is no stall.
_NO_STALLS = ("selected", "not_selected")
_STALLS_KEPT = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser)
    parser.add_argument("--suites", nargs="+", choices=OP_OF, default=list(OP_OF))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)


def command(arguments: argparse.Namespace) -> int:
    chosen = options.parse(arguments)
    if arguments.inside:
        launch(arguments.suites, chosen)
        return 0
    tool = ncu()
    if tool is None:
        print("benchmarks counters: there is no ncu (Nsight Compute)", file=sys.stderr)
        return 2
    raw = chosen.folder / "counters.txt"  # what ends in .csv there is results
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.unlink(missing_ok=True)
    sections = [word for name in _SECTIONS for word in ("--section", name)]
    # The clocks are left as they are: the machine is shared with others.
    profiler = [tool, "--clock-control", "none", "--profile-from-start", "off", "--nvtx"]
    output = ["--csv", "--page", "raw", "--log-file", str(raw)]
    inside = [sys.executable, "-m", "benchmarks", "counters", "--inside", *sys.argv[2:]]
    status = subprocess.run([*profiler, *output, *sections, *inside], check=False).returncode
    found = list(rows(raw, chosen.device))
    results.upsert(chosen.folder / "results.csv", found)
    print(f"{len({(row.case, row.impl) for row in found})} launches of ours, into {chosen.folder}")
    return status


def rows(raw: Path, device: torch.device) -> Iterator[Row]:
    """Of each of our kernels, by operator and shape, what ncu printed into ``raw``: ``METRICS``,
    the time, and the stalls that most warps are in, in warps an issued instruction."""
    for launch in _launches(raw):
        # A template's arguments and a namespace are left out; PyTorch's own kernels are in ``at``.
        name = re.sub(r"^void |[<(].*", "", launch["Kernel Name"])
        if "at::" in name or not name.endswith("_kernel"):
            continue
        suite, shape, batch, dtype = launch[_RANGE].split(":")[1].split("|")
        make = results.maker(
            device, suite="counters", case=f"{suite} {shape}", batch=batch, resolution=0,
            dtype=dtype,
        )  # fmt: skip
        impl = name.rpartition("::")[2].removesuffix("_kernel")
        yield make(impl, "latency_us", "us", quantiles([_number(launch, _TIME) / 1e3]))
        for metric, (unit, column) in METRICS.items():
            yield make(impl, metric, unit, quantiles([_number(launch, column)]))
        for stall, warps in _stalls(launch):
            yield make(impl, f"stall_{stall}", "warps", quantiles([warps]))


def _launches(raw: Path) -> Iterator[dict[str, str]]:
    """Without what ncu says before the table, and without the line of units."""
    lines = raw.read_text().splitlines() if raw.exists() else []
    first = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    yield from list(csv.DictReader(lines[first:]))[1:]


def _stalls(launch: Mapping[str, str]) -> list[tuple[str, float]]:
    """The most frequent ones first."""
    found = {m[1]: _number(launch, m[0]) for m in map(_STALL.fullmatch, launch) if m}
    stalls = [(name, warps) for name, warps in found.items() if name not in _NO_STALLS]
    return sorted(stalls, key=lambda stall: -stall[1])[:_STALLS_KEPT]


def _number(launch: Mapping[str, str], column: str) -> float:
    """With commas between thousands."""
    return float(launch[column].replace(",", ""))


def ncu() -> str | None:
    installed = sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu"))
    return cuda_tool("ncu") or (str(installed[-1]) if installed else None)


def launch(suites: Sequence[str], chosen: Options) -> None:
    """Each case once, where the profiler looks, under its name."""
    random = torch.Generator(chosen.device).manual_seed(0)
    for suite in suites:
        for case in operators.cases(suite, chosen):
            function = operators.implementation("effv2", case)
            for batch in chosen.batch or (128,):
                for dtype in chosen.dtype or ("bfloat16",):
                    drawn = case.draw(batch, getattr(torch, dtype), chosen.device, random)
                    with torch.inference_mode():
                        function(*drawn)
                        torch.cuda.synchronize()
                        torch.cuda.profiler.start()
                        torch.cuda.nvtx.range_push(f"{suite}|{case.name}|{batch}|{dtype}")
                        function(*drawn)
                        torch.cuda.synchronize()
                        torch.cuda.nvtx.range_pop()
                        torch.cuda.profiler.stop()
