"""``python -m effv2_kernels tune``: the fastest launches for this GPU, into a JSON table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import effv2_kernels
import python_ref

from .. import ops
from .._torch import TorchDispatchMode
from ..engines import triton as triton_ops
from ..launch import tables, targets
from ..launch.targets import Target
from ..launch.triton import selection
from ..launch.triton.search import Outcome, Progress, search
from ..launch.triton.selection import Task
from ..running.inference import DISPATCHED
from .tune_timer import Estimates, Example, GpuTimer

_BAR = 24


def run(arguments: argparse.Namespace) -> int:
    """Tune for the current GPU; returns the exit status."""
    missing = why_not(arguments)
    if missing:
        print(f"tune: cannot run here: {missing}", file=sys.stderr)
        return 1
    rehearsed = arguments.rehearse
    target = targets.KNOWN["sm_90a"] if rehearsed else targets.of_device(torch.device("cuda"))
    path = tables.path_of(target.name, Path(arguments.output or tables.FOLDER))
    dtype = getattr(torch, arguments.dtype)
    try:
        examples = tasks_of(arguments.model, arguments.sizes, arguments.batch, dtype, target)
        print(f"{target.name}: {len(examples)} launches, at most {arguments.minutes} minutes")
        outcome = search(
            examples,
            target,
            Estimates(target) if rehearsed else GpuTimer(examples, target),
            path,
            seconds=60 * arguments.minutes,
            most=arguments.candidates,
            again=arguments.again,
            report=partial(_report, arguments.log),
        )
    except (ValueError, tables.TableError) as error:
        print(f"tune: {error}", file=sys.stderr)
        return 1
    print(summary(outcome, path))
    return 1 if outcome.failed else 0


def why_not(arguments: argparse.Namespace) -> str:
    """Why nothing can be measured here, or an empty string."""
    if arguments.rehearse:
        # Never into the package's own tables: what is there was measured.
        return triton_ops.missing() or ("" if arguments.output else "--rehearse needs --output")
    status = effv2_kernels.backends()["triton"]
    if not status.available:
        return status.reason
    return "" if torch.cuda.is_available() else "Triton interprets, on the CPU"


def tasks_of(
    models: Iterable[str],
    sizes: Sequence[int] | None,
    batches: Sequence[int],
    dtype: torch.dtype,
    target: Target,
) -> dict[Task, Example]:
    """The launches that the networks need, the largest first (a time budget goes to what takes the
    time), each with a call that makes it. Raises ValueError for an unknown network."""
    found: dict[Task, Example] = {}
    for name in models:
        with torch.device("meta"):
            model = python_ref.create(name).eval().to(dtype)
        effv2_kernels.patch(model)
        variant = python_ref.VARIANTS[model.variant.name]
        for side in sizes or (variant.train_size, variant.eval_size):
            for batch in batches:
                image = torch.empty((batch, 3, side, side), dtype=dtype, device="meta")
                with torch.no_grad(), _Calls(target, found):
                    model(image)
    return dict(sorted(found.items(), key=lambda item: -item[1].elements))


class _Calls(TorchDispatchMode):
    """Notes which launches the calls of our ops ask for."""

    def __init__(self, target: Target, found: dict[Task, Example]):
        super().__init__()
        self._target, self._found = target, found
        self._names = {getattr(DISPATCHED, name).default: name for name in ops.OPS}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        from ..engines.triton._launch import recording

        name = self._names.get(func)
        for example in _examples(name, args) if name is not None else ():
            with recording(self._target), selection.asked() as tasks:
                if triton_ops.WHY_NOT[example.op](example.args, self._target) is None:
                    triton_ops.RUN[example.op](*example.args)
            for task in tasks:
                self._found.setdefault(task, example)
        return func(*args, **(kwargs or {}))


def _examples(name: str, args: tuple) -> list[Example]:
    """The op, or the two that it is made of: a time of both would hide what one gains."""
    if name != "expand_depthwise":
        return [Example(name, args)] if name in triton_ops.RUN else []
    x, expand, rest, act = args[0], args[1:5], args[5:], args[-2]
    first = (x, *expand, None, (1, 1), (0, 0, 0, 0), act)
    hidden = DISPATCHED.conv_bias_act.default(*first)
    return [Example("conv_bias_act", first), Example("depthwise_bias_act", (hidden, *rest))]


def _report(log: Path | None, progress: Progress) -> None:
    print(line(progress), flush=True)
    for reason in progress.rejected:
        print(f"  rejected: {reason}"[:200], flush=True)
    if log is not None:
        task = progress.task
        times = [{**asdict(choice), "microseconds": us} for choice, us in progress.times.items()]
        entry = {"kernel": task.kernel, "kind": task.kind, "shape": asdict(task.shape)}
        with log.open("a") as file:
            file.write(json.dumps({**entry, "times": times, "rejected": progress.rejected}) + "\n")


def line(progress: Progress) -> str:
    """One line a task: a bar, what was tuned, and what it gained."""
    filled = _BAR * progress.done // progress.total
    bar = "#" * filled + "." * (_BAR - filled)
    shape = " ".join(str(int(value)) for value in astuple(progress.task.shape))
    gain = progress.before / progress.best
    text = (
        f"[{bar}] {progress.done}/{progress.total} {progress.task.kernel} {shape}: "
        f"{progress.best:.1f} us, {gain:.2f} x, of {len(progress.times)} tried"
    )
    return text + (f", {len(progress.rejected)} rejected" if progress.rejected else "")


def summary(outcome: Outcome, path: Path) -> str:
    lines = [f"{outcome.tuned} launches tuned, {outcome.kept} were in the table: {path}"]
    if outcome.left:
        lines.append(f"{outcome.left} are left: run the same command again")
    for task, reason in outcome.failed:
        lines.append(f"no launch of {task.kernel} ran for {task.shape}: {reason}")
    return "\n".join(lines)
