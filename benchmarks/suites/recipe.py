"""The paper's ablations of progressive learning (tables 5, 12, 13 and 14), trained on a CPU: as
many at a time as there are cores, each on one thread."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from effv2_kernels.measuring.timing import quantiles

from .. import results
from ..options import Options
from ..recipe import plans
from ..recipe.plans import BATCH, Run
from ..results import Row
from .cpu import threads


@dataclass(frozen=True)
class Numbers:
    """Of one training: (metric, unit, value)."""

    run: Run
    values: tuple[tuple[str, str, float], ...]


def recipe(options: Options) -> Iterator[list[Row]]:
    """Every training's rows, as they are done. Raises ValueError for tables that there are not."""
    runs = list(plans.runs(options.tables, options.seeds or plans.SEEDS))
    processes = min(options.threads or os.cpu_count() or 1, len(runs))
    with multiprocessing.get_context("spawn").Pool(processes, _one_thread) as pool:
        for done, found in enumerate(pool.imap(train, runs), 1):
            told = ", ".join(f"{value:.4g} {unit}" for _, unit, value in found.values[:4])
            print(f"{done} of {len(runs)}: {_case(found.run)}: {told}", file=sys.stderr, flush=True)
            yield rows(found)
            if done < len(runs) and not options.budget.allows(f"{len(runs) - done} trainings"):
                return


def train(run: Run) -> Numbers:
    from ..recipe.training import train  # what it needs takes seconds to import

    outcome = train(run)
    if not run.course:
        return Numbers(
            run,
            (
                ("top1", "%", 100 * outcome.top1),
                ("log_loss", "nat", outcome.loss),
                ("multiply_adds", "T", outcome.macs / 1e12),
                ("process_seconds", "s", outcome.seconds),
            ),
        )
    return Numbers(
        run,
        tuple(
            (f"{metric} after epoch {moment.epoch:g}", unit, value)
            for moment in outcome.course
            for metric, unit, value in (
                ("top1", "%", 100 * moment.top1),
                ("size", "px", moment.size),
                ("magnitude", "", moment.magnitude),
                ("multiply_adds", "T", moment.macs / 1e12),
            )
        ),
    )


def rows(found: Numbers) -> list[Row]:
    run = found.run
    with threads(1):  # as it was trained
        make = results.maker(
            torch.device("cpu"),
            suite="recipe",
            case=_case(run),
            batch=BATCH,
            resolution=run.plan.sizes[1],
            dtype="float32",
        )
    one = partial(make, f"seed_{run.seed}")
    return [one(metric, unit, quantiles([value])) for metric, unit, value in found.values]


def _case(run: Run) -> str:
    return f"{run.network}: {run.plan.name}"


def _one_thread() -> None:
    torch.set_num_threads(1)
