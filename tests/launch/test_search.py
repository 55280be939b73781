"""``tune`` with a stand-in for the GPU: search, prune, write, stop, resume, validate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import effv2_kernels as ek
from effv2_kernels.cli import main, tune
from effv2_kernels.cli.tune_timer import GpuTimer
from effv2_kernels.engines import triton as triton_ops
from effv2_kernels.launch import tables, targets
from effv2_kernels.launch.triton import conv, dense, fused_mbconv, selection
from effv2_kernels.launch.triton.families import FAMILIES
from effv2_kernels.launch.triton.search import Outcome, Progress, Rejected, plan, search
from effv2_kernels.launch.triton.selection import Task

TARGET = dataclasses.replace(targets.KNOWN["sm_90a"], name="NVIDIA Stand-in")
TASKS = [
    Task("conv", conv.Shape(18432, 960, 160, 1, True, 0), "bfloat16"),
    Task("conv", conv.Shape(144, 1536, 256, 1, True, 0), "bfloat16"),
    Task("fused_mbconv", fused_mbconv.Shape(9216, 48, 192, 48, 9), "bfloat16"),
]


class StandIn:
    """Says that launches with two stages are the fastest, the larger the tile the better, and that
    256 rows do not run."""

    def __init__(self) -> None:
        self.compiled: dict[Task, list[Any]] = {}
        self.prepared: list[Task] = []
        self.measured: list[tuple[Task, Any]] = []

    def compile(self, plans: Mapping[Task, Sequence[Any]]) -> None:
        self.compiled.update({task: list(choices) for task, choices in plans.items()})

    def prepare(self, task: Task) -> None:
        self.prepared.append(task)

    def measure(self, task: Task, choice: Any) -> float:
        assert self.prepared[-1] == task and choice in self.compiled[task]
        self.measured.append((task, choice))
        if choice.block_m == 256:
            raise Rejected("out of resources")
        return choice.stages * 100.0 + 1000.0 / choice.block_m


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("EFFV2_TABLES", str(tmp_path))
    selection.known.cache_clear()
    tables._of_gpu.cache_clear()
    yield tables.path_of(TARGET.name, tmp_path)
    selection.known.cache_clear()
    tables._of_gpu.cache_clear()


def tuned(path: Path, **options: Any) -> tuple[Outcome, StandIn, list[Progress]]:
    timer, seen = StandIn(), []
    options = {"seconds": 60.0, "report": seen.append} | options
    return search(TASKS, TARGET, timer, path, **options), timer, seen


def test_the_fastest_is_found_written_and_used(path: Path) -> None:
    outcome, timer, seen = tuned(path)
    assert outcome == Outcome(tuned=3, kept=0, left=0, failed=())
    entries, moved = {(e.kernel, e.shape): e for e in tables.read(path)}, []
    selection.known.cache_clear()
    for task in TASKS:
        tried = [choice for t, choice in timer.measured if t == task]
        ran = [choice for choice in tried if choice.block_m != 256]
        best = min(ran, key=lambda c: c.stages * 100.0 + 1000.0 / c.block_m)
        assert entries[task.kernel, task.shape].choice == best
        assert entries[task.kernel, task.shape].microseconds == pytest.approx(
            best.stages * 100.0 + 1000.0 / best.block_m
        )
        moved.append(best != FAMILIES[task.kernel].modelled(task.shape, task.kind, TARGET))
        assert selection.choose(task.kernel, task.shape, task.kind, TARGET) == best
    # Of the stand-in's favourites one may be what the model chooses, too.
    assert any(moved), "what is measured may differ from what the model chooses"
    assert [p.done for p in seen] == [1, 2, 3] and all(p.best <= p.before for p in seen)
    assert "3/3" in tune.line(seen[-1]) and "######" in tune.line(seen[-1])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.kernel}-{task.shape.rows}")
def test_candidates_are_pruned_by_budget_and_by_cost(task: Task, path: Path) -> None:
    family = FAMILIES[task.kernel]
    tried = plan(task, TARGET, 24)
    assert 2 <= len(tried) <= 24 and len(set(tried)) == len(tried)
    assert tried[0] == selection.known(task.kernel, task.shape, task.kind, TARGET)
    costs = [family.cost(task.shape, choice, task.kind, TARGET) for choice in tried]
    assert costs[1:] == sorted(costs[1:]) and costs[-1] <= 3 * min(costs)
    for choice in tried:
        assert family.fits(task.shape, choice, task.kind, TARGET)
    small = dataclasses.replace(TARGET, shared_per_block=40_000)
    for choice in plan(task, small, 24):
        assert family.shared_bytes(task.shape, choice, task.kind) <= 40_000


def test_what_does_not_run_is_reported_and_not_chosen(path: Path) -> None:
    wide = Task("conv", conv.Shape(4718592, 24, 24, 9), "bfloat16")
    timer, seen = StandIn(), []
    search([wide], TARGET, timer, path, seconds=60, report=seen.append)
    assert any(choice.block_m == 256 for _, choice in timer.measured)
    assert seen[0].rejected and "out of resources" in seen[0].rejected[0]
    assert tables.read(path)[0].choice.block_m != 256


def test_a_reason_is_printed_and_kept(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = Task("conv", conv.Shape(4718592, 24, 24, 9), "bfloat16")
    log = tmp_path / "log.jsonl"
    search([wide], TARGET, StandIn(), path, seconds=60, report=partial(tune._report, log))
    printed = capsys.readouterr().out
    assert "  rejected: Choice(block_m=256" in printed and "out of resources" in printed
    assert "out of resources" in json.loads(log.read_text())["rejected"][0]


def test_candidates_compile_together_not_a_task_at_a_time(path: Path) -> None:
    """A worker takes seconds to start, and 45 s is what there is for a network's 34 shapes."""
    shapes = [conv.Shape(18432, 960, out, 1, True, 0) for out in range(64, 64 + 8 * 34, 8)]
    timer, calls = StandIn(), []
    together = timer.compile

    def compile(plans: Mapping[Task, Sequence[Any]]) -> None:
        calls.append(len(plans))
        together(plans)

    timer.compile = compile  # type: ignore[method-assign]
    search([Task("conv", s, "bfloat16") for s in shapes], TARGET, timer, path, seconds=60, most=4)
    assert sum(calls) == 34 and min(calls[:-1]) >= 4


@pytest.mark.skipif(triton_ops.missing() != "", reason="no Triton")
@pytest.mark.skipif(triton_ops.interpreted(), reason="kernels are interpreted")
def test_a_candidate_that_the_compiler_refuses_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tasks = tune.tasks_of(["efficientnetv2_b0"], [64], [1], torch.bfloat16, TARGET)
    task = next(t for t in tasks if t.kernel == "conv")
    good, *_ = plan(task, TARGET, 2)
    refused = dataclasses.replace(good, block_n=48)  # no power of two
    GpuTimer({task: tasks[task]}, TARGET).compile({task: [refused, good]})
    assert len(list(tmp_path.rglob("conv*.cubin"))) == 1


def test_nothing_that_runs(path: Path) -> None:
    class Broken(StandIn):
        def measure(self, task: Task, choice: Any) -> float:
            raise Rejected("a wrong result")

    outcome = search(TASKS[:1], TARGET, Broken(), path, seconds=60)
    ((task, reason),) = outcome.failed
    assert task == TASKS[0] and outcome.tuned == 0 and not path.exists()
    assert "a wrong result" in reason
    assert "no launch of conv ran" in tune.summary(outcome, path)


def ticking(step: float) -> Callable[[], float]:
    now = [0.0]

    def clock() -> float:
        now[0] += step
        return now[0]

    return clock


def test_the_time_ends_and_the_search_is_taken_up_again(path: Path) -> None:
    first, timer, _ = tuned(path, seconds=15.0, clock=ticking(10.0))
    assert first == Outcome(tuned=1, kept=0, left=2, failed=())
    assert timer.prepared == TASKS[:1] and len(tables.read(path)) == 1
    assert "2 are left" in tune.summary(first, path)
    second, timer, _ = tuned(path)
    assert second == Outcome(tuned=2, kept=1, left=0, failed=()) and timer.prepared == TASKS[1:]
    third, timer, _ = tuned(path)
    assert third == Outcome(tuned=0, kept=3, left=0, failed=()) and not timer.measured
    fourth, timer, _ = tuned(path, again=True)
    assert fourth.tuned == 3 and timer.prepared == TASKS and len(tables.read(path)) == 3


def test_a_table_that_is_not_valid_stops_it(path: Path) -> None:
    path.write_text('[\n{"kernel": "conv"}\n]\n')
    with pytest.raises(tables.TableError, match="line 2"):
        tuned(path)


def test_a_forced_choice_is_for_its_task_only() -> None:
    task, other = TASKS[0], TASKS[1]
    choice = conv.Choice(64, 64, 64, 1, 4, 3)
    with selection.asked() as seen, selection.forced(task, choice):
        assert selection.choose(task.kernel, task.shape, task.kind, TARGET) == choice
        found = selection.choose(other.kernel, other.shape, other.kind, TARGET)
    assert found == selection.known(other.kernel, other.shape, other.kind, TARGET)
    assert list(seen) == [task, other]
    assert selection.choose(task.kernel, task.shape, task.kind, TARGET) != choice


def test_every_launch_of_a_network_is_found() -> None:
    found = tune.tasks_of(["efficientnetv2_b0"], [64], [1, 2], torch.bfloat16, TARGET)
    assert {task.kernel for task in found} == set(FAMILIES)
    sizes = [example.elements for example in found.values()]
    assert sizes == sorted(sizes, reverse=True)
    for task, example in found.items():
        assert task.kind in dense.KINDS
        with selection.asked() as again, torch.no_grad():
            from effv2_kernels.engines import triton as triton_ops
            from effv2_kernels.engines.triton._launch import recording

            with recording(TARGET):
                triton_ops.RUN[example.op](*example.args)
        assert task in again
    with pytest.raises(ValueError):
        tune.tasks_of(["resnet50"], [64], [1], torch.bfloat16, TARGET)


def test_the_command(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timer = StandIn()
    timer.measure = lambda task, choice: 10.0 + choice.warps  # type: ignore[method-assign]
    monkeypatch.setattr(tune, "why_not", lambda arguments: "")
    monkeypatch.setattr(tune.targets, "of_device", lambda device: TARGET)
    monkeypatch.setattr(tune, "GpuTimer", lambda examples, target: timer)
    command = ["tune", "--model", "efficientnetv2_b0", "--sizes", "64", "--batch", "1"]
    command += ["--output", str(path.parent), "--candidates", "4"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    count = len(tables.read(path))
    assert count > 10 and f"{count} launches tuned, 0 were in the table" in printed
    assert f"[{'#' * 24}] {count}/{count}" in printed
    assert main(command) == 0
    assert f"0 launches tuned, {count} were in the table" in capsys.readouterr().out


def test_the_command_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if ek.backends()["triton"].available:
        pytest.skip("Triton runs here")
    assert main(["tune"]) == 1
    assert "tune: cannot run here" in capsys.readouterr().err


def test_a_rehearsal_needs_no_gpu_and_touches_no_table_of_ours(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "tune",
        "--rehearse",
        "--model",
        "efficientnetv2_b0",
        "--sizes",
        "64",
        "--batch",
        "1",
    ]
    assert main([*command, "--candidates", "2", "--output", str(path.parent)]) == 0
    assert len(tables.read(path.parent / "nvidia_h200.json")) > 10
    assert main(command) == 1
    assert "needs --output" in capsys.readouterr().err
