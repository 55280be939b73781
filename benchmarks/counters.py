"""``python -m benchmarks counters``: what the hardware counters of a GPU say of the operators'
kernels, read by Nsight Compute (``ncu``): which unit is busy, and what warps wait for."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import options
from .ops.cases import OP_OF
from .options import Options
from .suites import operators

HELP = "hardware counters of the operators' kernels, by ncu"
#: Of Nsight Compute's sections, those that say what bounds a kernel.
_SECTIONS = (
    *("SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis"),
    *("LaunchStats", "Occupancy", "SchedulerStats", "WarpStateStats"),
)


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
    raw = chosen.folder / "counters.csv"
    raw.parent.mkdir(parents=True, exist_ok=True)
    sections = [word for name in _SECTIONS for word in ("--section", name)]
    # The clocks are left as they are: the machine is shared with others.
    profiler = [tool, "--clock-control", "none", "--profile-from-start", "off", "--nvtx"]
    output = ["--csv", "--page", "raw", "--log-file", str(raw)]
    inside = [sys.executable, "-m", "benchmarks", "counters", "--inside", *sys.argv[2:]]
    return subprocess.run([*profiler, *output, *sections, *inside], check=False).returncode


def ncu() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("ncu") or shutil.which("ncu", path=f"{home}/bin:/usr/local/cuda/bin")
    installed = sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu"))
    return found or (str(installed[-1]) if installed else None)


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
