"""``python -m benchmarks tuned LOG``: what ``tune --log`` measured of operators, as rows.

``tune`` times whole calls as the operators' suites do, in CUDA graphs over inputs that rotate past
the L2 cache, but nothing beside them: these rows hold times and no ratios.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from effv2_kernels.engines import triton as triton_ops
from effv2_kernels.engines.triton._launch import recording
from effv2_kernels.launch import targets
from effv2_kernels.launch.triton import selection
from effv2_kernels.launch.triton.selection import Task
from effv2_kernels.measuring.timing import quantiles

from . import results
from .ops.cases import Case
from .options import Options
from .results import Row
from .suites import operators

HELP = "rows of what `tune --log` measured"
#: Operators that are one Triton kernel.
SUITES = ("fused_mbconv", "conv", "project", "head")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=Path)
    parser.add_argument("--model", default="efficientnetv2_s")
    parser.add_argument("--resolution", type=int, default=384)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1])
    parser.add_argument("--device", default="cuda", help="that computed (default: %(default)s)")


def command(arguments: argparse.Namespace) -> int:
    """The rows go into the results.csv beside the log. Exit status 1 if there are none."""
    asked = arguments.model, arguments.resolution, arguments.batch
    found = list(rows(arguments.log, torch.device(arguments.device), *asked))
    results.upsert(arguments.log.with_name("results.csv"), found)
    print(f"{len(found)} rows")
    return int(not found)


def rows(
    log: Path,
    device: torch.device,
    model: str = "efficientnetv2_s",
    resolution: int = 384,
    batches: Sequence[int] = (128, 1),
) -> Iterator[Row]:
    """Of each operator's shape: the fastest launch, and the one that the model of tiles chose."""
    times = read(log)
    options = Options(device, models=(model,), resolution=resolution)
    for suite in SUITES:
        for case in operators.cases(suite, options):
            for batch in batches:
                task = task_of(case, batch)
                if task not in times:
                    continue
                make = results.maker(
                    device,
                    suite="tune",
                    case=f"{suite} {case.name}",
                    batch=batch,
                    resolution=0,
                    dtype=task.kind,
                )
                yield make("effv2", "latency_us", "us", quantiles([min(times[task])]))
                yield make("effv2_untuned", "latency_us", "us", quantiles([times[task][0]]))


def read(log: Path) -> dict[Task, list[float]]:
    """Microseconds of each task's launches, that of the model's choice first; nothing if there is
    no log."""
    found = {}
    # Behind the last line end is nothing, or what was being written when tuning was ended.
    for line in log.read_text().split("\n")[:-1] if log.exists() else ():
        entry = json.loads(line)
        shape = selection.FAMILIES[entry["kernel"]].Shape(**entry["shape"])
        task = Task(entry["kernel"], shape, entry["kind"])
        found[task] = [launch["microseconds"] for launch in entry["times"]]
    return found


def task_of(case: Case, batch: int) -> Task:
    """The launch that a case asks for, in bfloat16."""
    with recording(targets.KNOWN["sm_90a"]), selection.asked() as tasks:
        triton_ops.RUN[case.op](*case.outline(batch, torch.bfloat16))
    (task,) = tasks
    return task
