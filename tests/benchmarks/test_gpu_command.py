"""``make gpu`` whole, with the CPU in the place of the GPU; and what it does when things fail."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, results
from benchmarks.__main__ import main
from benchmarks.gpu import Run, Section, Step

PRINT = Step(("-c", "print('hello')"), budgeted=False)
FAIL = Step(("-c", "print('what went wrong'); raise SystemExit(3)"), budgeted=False)


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path: Path) -> None:
    command = ["make", "--no-print-directory", "gpu", f"PYTHON={sys.executable}", "DEVICE=cpu"]
    done = subprocess.run(
        [*command, "MINUTES=8", f"RESULTS={tmp_path}"],
        cwd=gpu.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    for section in gpu.SECTIONS:
        assert f"ok      {section.name}: " in done.stdout
    rows = results.read(tmp_path / "results.csv")
    suites = {"ceilings", "roofline", "models", "latency", "depthwise", "expand_depthwise", "stem"}
    suites |= {"gate", "conv", "fused_mbconv", "project", "head", "train", "memory", "placement"}
    assert suites | {"headline"} == {row.suite for row in rows}
    # Six at most, with the GPU tests' checks.jsonl: some machines bring few files back.
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    table = "nvidia_h200.json"  # for which tuning was rehearsed
    assert files == {"results.csv", "static/counts.csv", "log.txt", table, "tuning.jsonl"}


@pytest.fixture
def lines() -> list[str]:
    return []


def runner(tmp_path: Path, lines: list[str], minutes: float = 1.0, device: str = "cpu") -> Run:
    return Run(tmp_path, device, minutes, lines.append)


def test_a_failure_does_not_stop_the_next(tmp_path: Path, lines: list[str]) -> None:
    run = runner(tmp_path, lines)
    run.section(Section("first", 1, (FAIL, PRINT)), 1)
    assert [line.split()[0] for line in lines] == ["FAILED", "ok"]
    assert "exit status 3" in lines[0] and "what went wrong" in lines[0]
    assert len(run.failed) == 1
    log = run.log.read_text()
    assert "hello" in log and "what went wrong" in log


def test_what_a_step_prints_is_not_cut_off(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest shortens what was wrong to the terminal's width, which a pipe has not."""
    monkeypatch.setenv("COLUMNS", "80")
    failing = tmp_path / "test_planted.py"
    words = "error 4.0e-5, PyTorch's 1.6e-5 " * 6
    failing.write_text(f"def test_planted():\n    raise ValueError({words!r})\n")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)  # where it runs: a short path
    command = [sys.executable, "-m", "pytest", "-q", failing.name]
    status, tail = runner(tmp_path / "out", lines)._execute(command, 60.0)
    assert status == 1 and f"ValueError: {words}".strip() in tail.splitlines()[-2]


def test_latency_is_measured_before_what_can_take_any_time() -> None:
    """In a section of its own, so that nothing before it in a section eats its time."""
    names = [section.name for section in gpu.SECTIONS]
    assert names.index("latency") < names.index("models") < names.index("train")
    (step,) = gpu.SECTIONS[names.index("latency")].steps
    assert step.arguments[2:] == ("latency",) and not {"models"} & set(step.arguments)


def test_a_section_that_takes_too_long_leaves_the_next_its_least(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of what is left then, and 15 seconds at least for each of its steps."""
    now, seconds = [1000.0], []
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    run = runner(tmp_path, lines)
    run.end = now[0] + 100

    def step(name: str, step: Step, limit: float) -> None:
        seconds.append((name, limit))
        now[0] += 55 if name == "first" else 10

    run.step = step  # type: ignore[method-assign]
    for name, share, ahead in (("first", 4, 12), ("latency", 1, 8), ("models", 7, 7)):
        run.section(Section(name, share, (PRINT,)), ahead)
    assert seconds[0] == ("first", pytest.approx(100 * 4 / 12))
    assert seconds[1] == ("latency", 15.0)  # an eighth of 45 would be 5.6
    assert seconds[2] == ("models", pytest.approx(35))


def test_what_there_is_no_time_for_fails(tmp_path: Path, lines: list[str]) -> None:
    run = runner(tmp_path, lines, minutes=0.0)
    run.section(Section("late", 1, (PRINT,)), 1)
    assert "not run, for the time is used up" in lines[0] and run.failed


def test_what_hangs_is_ended(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runner(tmp_path, lines)
    hang = [sys.executable, "-c", "import time; print('hanging', flush=True); time.sleep(60)"]
    status, tail = run._execute(hang, 2.0)
    assert status == 124 and "hanging" in tail


def test_what_hangs_is_ended_with_its_children(tmp_path: Path, lines: list[str]) -> None:
    note = tmp_path / "pid"
    child = "import time; time.sleep(60)"
    parent = (
        f"import pathlib, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}])"
    )
    parent += f"; pathlib.Path({str(note)!r}).write_text(str(p.pid)); p.wait()"
    runner(tmp_path / "out", lines)._execute([sys.executable, "-c", parent], 3.0)
    time.sleep(0.2)
    state = Path(f"/proc/{note.read_text()}/stat")
    assert not state.exists() or state.read_text().rpartition(") ")[2].startswith("Z")


def test_without_a_sanitizer_the_section_fails_on_a_gpu_only(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name, path=None: None)
    step = Step(PRINT.arguments, budgeted=False, sanitizer="memcheck")
    runner(tmp_path, lines, device="cuda").step("sanitizer", step, 10)
    runner(tmp_path, lines, device="cpu").step("sanitizer", step, 10)
    assert "no compute-sanitizer" in lines[0] and lines[0].startswith("FAILED")
    assert lines[1].startswith("ok")


def test_the_sanitizer_is_put_before_the_command(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "as $@"\n')
    tool.chmod(0o755)
    monkeypatch.setattr(gpu.shutil, "which", lambda name, path=None: str(tool))
    run = runner(tmp_path / "out", lines, device="cuda")
    run.step("sanitizer", Step(PRINT.arguments, budgeted=False, sanitizer="racecheck"), 10)
    assert lines[0].startswith("ok")
    assert "as --tool racecheck --error-exitcode 1" in run.log.read_text()


def test_every_section_names_suites_and_tests_that_exist() -> None:
    from benchmarks.__main__ import COMMANDS
    from benchmarks.suites import SUITES

    for section in gpu.SECTIONS:
        for step in section.steps:
            if step.arguments[:2] == ("-m", "benchmarks"):
                assert set(step.arguments[2:]) <= set(SUITES) | set(COMMANDS)
            elif step.arguments[1] == "pytest":
                assert (gpu.ROOT / step.arguments[2]).exists()


def test_a_run_without_the_native_library_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import native

    status = native._native.NativeStatus(False, "not built", None)
    monkeypatch.setattr(native._native, "load", lambda: status)
    assert native.main() == 1


def test_a_picture_that_fails_does_not_end_the_run(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise ImportError("no matplotlib")

    monkeypatch.setattr(gpu.plots, "draw", fail)
    run = runner(tmp_path, lines)
    run.pictures()
    assert "no matplotlib" in lines[0] and run.failed


def test_the_architecture_of_a_gpu() -> None:
    assert [gpu.architecture(c) for c in [(8, 0), (9, 0), (10, 0), (12, 0)]] == [
        "80",
        "90a",
        "100",
        "120",
    ]


def test_arguments_that_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--sections", "magic", "--device", "cpu"]) == 2
    if not torch.cuda.is_available():
        assert main(["gpu"]) == 2
        assert "no CUDA GPU" in capsys.readouterr().err
