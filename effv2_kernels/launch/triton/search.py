"""The search for the fastest launch: which candidates are tried, when it stops, what is kept.

Knows nothing of GPUs: a ``Timer`` compiles and measures, and tests bring one of their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .. import tables
from ..targets import Target
from .families import FAMILIES
from .selection import Task, known

# A candidate that the model holds for so much slower than its best is not tried.
_HOPELESS = 3.0
# Tasks that are compiled at once.
_TOGETHER = max(4, 2 * (os.cpu_count() or 1))


class Rejected(Exception):
    """A launch that does not compile, does not fit the GPU or computes something else."""


class Timer(Protocol):
    def compile(self, plans: Mapping[Task, Sequence[Any]]) -> None:
        """Compile what ``measure`` will run for some tasks, all at once. What does not compile is
        rejected when it is measured."""

    def prepare(self, task: Task) -> None:
        """Make the inputs of a task, whose candidates are measured next."""

    def measure(self, task: Task, choice: Any) -> float:
        """Microseconds, after the result was checked. Raises Rejected."""


@dataclass(frozen=True)
class Progress:
    """After a task. best and before: microseconds, of the choice and of the launch that it had
    until now; times: of each candidate that ran; rejected: why the others did not."""

    done: int
    total: int
    task: Task
    choice: Any
    best: float
    before: float
    times: Mapping[Any, float]
    rejected: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """tuned: tasks of this run; kept: tasks that the table had before; left: tasks for which the
    time did not suffice; failed: tasks none of whose launches ran, each with the reasons, one a
    line."""

    tuned: int
    kept: int
    left: int
    failed: tuple[tuple[Task, str], ...]


def plan(task: Task, target: Target, most: int) -> list[Any]:
    """The candidates to try, the best by the model first; the launch that would run today is among
    them. None of them exceeds the target's budget."""
    family = FAMILIES[task.kernel]
    now = known(task.kernel, task.shape, task.kind, target)
    costs = {
        choice: family.cost(task.shape, choice, task.kind, target)
        for choice in family.candidates(task.shape, task.kind, target)
    }
    ranked = sorted(costs, key=lambda choice: costs[choice])
    worth = [c for c in ranked if costs[c] <= _HOPELESS * costs[ranked[0]] and c != now]
    return ([] if now is None else [now]) + worth[: most - 1]


def search(
    tasks: Iterable[Task],
    target: Target,
    timer: Timer,
    path: Path,
    *,
    seconds: float,
    most: int = 24,
    again: bool = False,
    clock: Callable[[], float] = time.monotonic,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Measure the candidates of each task and put the fastest into the table at ``path``, task by
    task, so that a search that was stopped is taken up where it was: what the table has is not
    measured again, unless ``again``. No task is begun after ``seconds``."""
    tasks = list(dict.fromkeys(tasks))
    have = {entry.key for entry in tables.read(path)} if path.exists() and not again else set()
    wanted = [task for task in tasks if (task.kernel, task.kind, task.shape) not in have]
    end, tuned, failed = clock() + seconds, 0, []
    for number, (task, choices) in enumerate(_compiled(wanted, target, timer, most), 1):
        if clock() >= end:
            break
        timer.prepare(task)
        times, rejected = _measure(timer, task, choices)
        if not times:
            failed.append((task, "\n  ".join(rejected) or "it has no candidates"))
            continue
        best = min(times, key=lambda choice: times[choice])
        tables.write(path, [tables.Entry(task.kernel, task.kind, task.shape, best, times[best])])
        tuned += 1
        before = times.get(choices[0], float("inf"))
        report(
            Progress(number, len(wanted), task, best, times[best], before, times, tuple(rejected))
        )
    left = len(wanted) - tuned - len(failed)
    return Outcome(tuned, len(tasks) - len(wanted), left, tuple(failed))


def _compiled(
    tasks: Sequence[Task], target: Target, timer: Timer, most: int
) -> Iterator[tuple[Task, list[Any]]]:
    """Each task with its candidates, compiled for some tasks together: to start the processes that
    compile takes longer than they do for one."""
    for first in range(0, len(tasks), _TOGETHER):
        plans = {task: plan(task, target, most) for task in tasks[first : first + _TOGETHER]}
        timer.compile(plans)
        yield from plans.items()


def _measure(
    timer: Timer, task: Task, choices: Sequence[Any]
) -> tuple[dict[Any, float], list[str]]:
    times, rejected = {}, []
    for choice in choices:
        try:
            times[choice] = timer.measure(task, choice)
        except Rejected as reason:
            rejected.append(f"{choice}: {reason}")
    return times, rejected
