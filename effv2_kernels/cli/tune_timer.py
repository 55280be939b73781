"""Measures a launch on the GPU, for ``tune``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..engines import triton as triton_ops
from ..launch.targets import Target
from ..launch.triton.families import FAMILIES
from ..launch.triton.search import Rejected
from ..launch.triton.selection import Task, forced
from ..measuring.agreement import relative_error

_CALLS = 16  # in one graph
_ROUNDS = 7
_MOST_COPIES = 16
# Of a 16-bit result against ATen's: two roundings, and the order of sums.
_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Example:
    """A call of an op, its tensors without data."""

    op: str
    args: tuple

    @property
    def elements(self) -> int:
        return sum(tensor.numel() for tensor in self._tensors)

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors)

    @property
    def _tensors(self) -> list[Tensor]:
        lists = (a if isinstance(a, list | tuple) else [a] for a in self.args)
        return [a for several in lists for a in several if isinstance(a, Tensor)]

    def filled(self, seed: int) -> tuple:
        """The arguments with random numbers on the current GPU, in the same layouts."""
        generator = torch.Generator("cuda").manual_seed(seed)
        return tuple(_filled(a, generator) for a in self.args)


def _filled(argument: Any, generator: torch.Generator) -> Any:
    if isinstance(argument, Tensor):
        return _random(argument, generator)
    if isinstance(argument, list | tuple) and argument and isinstance(argument[0], Tensor):
        mean, variance, *rest = (_random(vector, generator) for vector in argument)
        return [mean, variance.square_().add_(0.5), *rest]
    return argument


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    found = torch.empty_like(like, device="cuda")
    scale = 1.0 if like.dim() < 4 or like.shape[0] == 0 else like[0].numel() ** -0.5
    is_weight = like.dim() == 4 and like.shape[2] <= 11 and like.shape[2] == like.shape[3]
    return found.normal_(0, scale if is_weight else 1.0, generator=generator)


class GpuTimer:
    """Times whole calls of an op, in a CUDA graph, on inputs that rotate past the L2 cache. A
    result is compared with ATen's before it is timed."""

    def __init__(self, examples: Mapping[Task, Example], target: Target):
        self._examples, self._target = examples, target
        self._task: Task | None = None
        self._inputs: list[tuple] = []
        self._reference: tuple[Tensor, ...] = ()

    def compile(self, plans: Mapping[Task, Sequence[Any]]) -> None:
        from ..engines.triton._compile import compile_all
        from ..engines.triton._launch import recording

        instances: dict = {}
        for task, choices in plans.items():
            example = self._examples[task]
            for choice in choices:
                with recording(self._target) as found, forced(task, choice):
                    triton_ops.RUN[example.op](*example.args)
                instances.update(found)
        compile_all(list(instances), self._target, tolerant=True)

    def prepare(self, task: Task) -> None:
        example = self._examples[task]
        copies = min(_MOST_COPIES, 1 + 2 * self._target.l2_bytes // max(example.bytes, 1))
        self._task, self._inputs = task, []
        torch.cuda.empty_cache()
        self._inputs = [example.filled(seed) for seed in range(copies)]
        self._reference = _tuple(ops.OPS[example.op].aten(*self._inputs[0]))

    def measure(self, task: Task, choice: Any) -> float:
        assert task == self._task, "prepare comes first"
        run = triton_ops.RUN[self._examples[task].op]
        with torch.no_grad(), forced(task, choice):
            try:
                found = _tuple(run(*self._inputs[0]))
                torch.cuda.synchronize()
            except Exception as error:  # Triton's: out of resources, or a limit of the compiler
                raise Rejected(" ".join(str(error).split())[:300] or repr(error)) from error
            self._check(found)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in range(_CALLS):
                    run(*self._inputs[call % len(self._inputs)])
        return _median_of(graph) / _CALLS

    def _check(self, found: tuple[Tensor, ...]) -> None:
        for ours, theirs in zip(found, self._reference, strict=True):
            if theirs.numel():
                error = relative_error(ours, theirs)
                if not error <= _TOLERANCE:
                    raise Rejected(f"a wrong result: off by {error:.1e}")


class Estimates:
    """What the cost model holds for the time: a rehearsal, where there is no GPU."""

    def __init__(self, target: Target):
        self._target = target

    def compile(self, plans: Mapping[Task, Sequence[Any]]) -> None:
        """Nothing runs, so nothing is compiled."""

    def prepare(self, task: Task) -> None:
        """Nor are there any inputs."""

    def measure(self, task: Task, choice: Any) -> float:
        return FAMILIES[task.kernel].cost(task.shape, choice, task.kind, self._target)


def _median_of(graph: torch.cuda.CUDAGraph) -> float:
    """Microseconds of a replay."""
    times = []
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end))
    return median(times)


def _tuple(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)
