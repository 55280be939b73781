"""What ``make gpu`` does with its time and when things fail; tests/fake_gpu runs the whole."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, results
from benchmarks.__main__ import _parser as suites_parser
from benchmarks.__main__ import main
from benchmarks.catalogue import find
from benchmarks.gpu import run as runner
from benchmarks.gpu.parts import BUILD, PARTS, Step
from benchmarks.gpu.run import Run, after_crash, architecture
from benchmarks.implementations import INFERENCE
from benchmarks.ops import cases
from benchmarks.suites import SUITES, operators
from effv2_kernels.cli import main as command_line
from effv2_kernels.cli import tune

STEPS = {
    (part, step.name): step for part, steps in {"build": BUILD, **PARTS}.items() for step in steps
}
VALUES = {"folder": "/out", "scratch": "/scratch", "seconds": "30", "minutes": "0.50"}


def python(name: str, code: str, **options) -> Step:
    """A step of a Python that runs ``code``, in which a space is a plus sign."""
    return Step(name, (f"-c exec({code.replace(' ', '+')!r}.replace('+',chr(32)))",), **options)


PRINT = python("print", "print('hello')")
FAIL = python("fail", "print('what went wrong'); raise SystemExit(3)")


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path, lines: list[str]) -> Run:
    return Run(tmp_path / "results", lines.append)


def test_a_failure_does_not_stop_the_next(run: Run, lines: list[str]) -> None:
    run.part("check", (FAIL, PRINT), 60)
    assert [line.split()[:3] for line in lines] == [
        ["FAILED", "check", "fail:"],
        ["ok", "check", "print"],
    ]
    assert "exit status 3" in lines[0] and "what went wrong" in lines[0]
    assert len(run.failed) == 1
    log = run.log.read_text()
    assert "hello" in log and "what went wrong" in log


def test_only_some_steps(tmp_path: Path, lines: list[str]) -> None:
    Run(tmp_path, lines.append, only=["print"]).part("check", (FAIL, PRINT), 60)
    assert [line.split()[0] for line in lines] == ["ok"]


def test_what_a_step_prints_is_not_cut_off(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest shortens what was wrong to the terminal's width, which a pipe has not."""
    monkeypatch.setenv("COLUMNS", "80")
    failing = tmp_path / "test_planted.py"
    words = "error 4.0e-5, PyTorch's 1.6e-5 " * 6
    failing.write_text(f"def test_planted():\n    raise ValueError({words!r})\n")
    monkeypatch.setattr(runner, "ROOT", tmp_path)  # where it runs: a short path
    run.part("check", (Step("pytest", (f"-m pytest -q {failing.name}",)),), 60)
    assert f"ValueError: {words}".strip() in run.log.read_text()


def test_a_step_gets_its_share_and_leaves_the_next_their_least(
    run: Run, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, seen = [1000.0], []
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])

    def step(part: str, step: Step, seconds: float, limit: float) -> None:
        seen.append((step.name, round(seconds), round(limit)))
        now[0] += 70 if step.name == "first" else 10

    run.step = step  # type: ignore[method-assign]
    steps = [Step("first", (), share=2), Step("second", (), least=15), Step("third", (), share=7)]
    run.part("check", steps, 104)
    # Of 100 seconds: a fifth, and all but what is kept; then an eighth of 30, but its least.
    assert seen == [("first", 20, 75), ("second", 15, 20), ("third", 20, 20)]
    now[0] = 1000.0
    run.part("check", [Step("late", (), least=20), Step("later", ())], 14)
    assert lines == ["FAILED  check late: not run, for the time is used up"] and len(seen) == 4


def test_what_hangs_is_ended_with_its_children(
    run: Run, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "pid"
    script = tmp_path / "hang.py"
    script.write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "print('hanging', flush=True); child.wait()\n"
    )
    run.step("check", Step("hang", (str(script),)), 3.0, 3.0)
    assert "ended at its time limit" in lines[0] and "hanging" in lines[0]
    time.sleep(0.2)
    state = Path(f"/proc/{note.read_text()}/stat")
    assert not state.exists() or state.read_text().rpartition(") ")[2].startswith("Z")


def test_a_suite_that_is_ended_in_its_midst_is_the_only_one_that_is_lost(
    run: Run, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel breaks the context, or hangs until the suite's watchdog: the process is gone."""
    program = tmp_path / "suites.py"
    program.write_text(
        "import sys\nnames = [n for n in sys.argv[1:] if n[0] != '-']\n"
        "for k, name in enumerate(names):\n"
        "    print(f'== {name} ({k + 1} of {len(names)})')\n"
        "    print(f'begun: {name} 8x8')\n"
        "    if name == 'gate': raise SystemExit(3)\n"
        "    print('measured', name)\n"
    )
    step = Step("operators", (f"{program} stem gate conv head --rounds",))
    run.step("speed", step, 60, 60)
    assert lines[0].startswith("FAILED  speed operators: exit status 3 in gate 8x8")
    assert lines[1].startswith("ok      speed operators")
    log = run.log.read_text()
    assert [name for name in ("stem", "gate", "conv", "head") if f"measured {name}" in log] == [
        *("stem", "conv", "head")
    ]


@pytest.mark.parametrize(
    ("status", "printed", "reason"),
    [
        (1, "begun: stem 8x8\nbegun: stem 9x9\nTimeout (0:01:00)!\n", "exit status 1 in stem 9x9"),
        (
            1,
            "begun: stem 9x9\n\nfailed:\n  stem 8x8: wrong\n  b\n",
            "exit status 1: stem 8x8: wrong",
        ),
        (3, "begun: stem 9x9\n", "exit status 3 in stem 9x9"),
        (124, "begun: stem 9x9\n", "ended at its time limit in stem 9x9"),
        (2, "no such argument", "exit status 2"),
    ],
)
def test_the_case_that_is_to_blame(status: int, printed: str, reason: str) -> None:
    assert runner._reason(status, printed) == reason


def test_what_was_found_at_another_commit_is_not_about_this_one(
    tmp_path: Path, lines: list[str]
) -> None:
    run = Run(tmp_path, lines.append, commit="abc")
    found = json.loads(record("tests/gpu/test_stem.py::test_x", ("stem", "cuda", "bfloat16")))
    for commit, wrong in (("def", set()), ("abc", {("stem", "cuda")})):
        run.checks.write_text(json.dumps({**found, "commit": commit}) + "\n")
        assert set(run.wrong()) == wrong
    run.log.write_text("")
    run.forget()
    assert not run.log.exists() and not run.checks.exists()


def test_a_step_that_cannot_even_be_begun_is_a_failure(
    run: Run, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.checks.write_text("{\n")
    run.part("speed", (STEPS["speed", "models"], PRINT), 60)
    assert lines[0].startswith("FAILED  speed models: JSONDecodeError: ")


def test_a_signal_ends_what_runs_and_begins_nothing_else(run: Run, lines: list[str]) -> None:
    threading.Timer(1.0, run.stop).start()
    began = time.monotonic()
    run.part("check", (python("sleep", "import time; time.sleep(50)"), PRINT), 60)
    assert time.monotonic() - began < 20
    assert [line.split()[:3] for line in lines] == [["FAILED", "check", "sleep:"]]


def test_what_is_left_after_a_crash() -> None:
    command = ["python", "-m", "benchmarks", "stem", "gate", "head", "--rounds", "7"]
    in_the_second = "== stem (1 of 3)\n== gate (2 of 3)\n"
    assert after_crash([command], 3, in_the_second) == [
        ["python", "-m", "benchmarks", "head", "--rounds", "7"]
    ]
    assert after_crash([command], 0, in_the_second) == []
    budgeted = ["stem", "--time-budget", "60", "--rounds", "7"]
    assert runner._within(budgeted, 12.3) == ["stem", "--time-budget", "12", "--rounds", "7"]
    assert runner._within(budgeted, -5) == ["stem", "--time-budget", "1", "--rounds", "7"]
    assert runner._within(command, 12.3) == command
    assert after_crash([command], 1, in_the_second + "== head (3 of 3)\n") == []
    assert after_crash([command], 1, "no module named benchmarks") == []


def record(test: str, *checks: tuple[str, str, str], message: str = "") -> str:
    noted = [
        {"op": o, "engine": e, "dtype": d, "case": "", "error": 1, "pytorch": 0, "passed": False}
        for o, e, d in checks
    ]
    found = {"test": test, "outcome": "failed", "message": message, "checks": noted}
    return json.dumps(found) + "\n"


def test_what_failed_its_tests_is_neither_measured_nor_in_a_network(run: Run) -> None:
    run.checks.write_text(
        record("tests/gpu/test_stem.py::test_x", ("stem", "cuda", "bfloat16"))
        + record("tests/gpu/test_y.py::test_y", ("gated_project", "triton", "tf32"))
        + record("tests/gpu/test_triton_ops.py::test_z[conv_act_pool]", message="refused")
        + record("tests/gpu/test_triton_models.py::test_n", ("network", "cuda", "bfloat16"))
    )
    assert set(run.wrong()) == {("stem", "cuda"), ("conv_act_pool", "triton")}
    step = STEPS["speed", "operators"]
    (words,) = step.words(False, VALUES)
    command = run._command(step, words)
    assert "project" in command and not {"stem", "head"} & set(command)
    assert run._environment(step)["EFFV2_DISABLE"] == "none"
    network = run._environment(STEPS["speed", "models"])["EFFV2_DISABLE"]
    assert network == "stem:cuda,conv_act_pool:triton"
    # Of an engine that dispatch does not take, the op is measured all the same.
    run.checks.write_text(
        record("tests/gpu/test_triton_ops.py::test_x", ("stem", "triton", "bfloat16"))
    )
    assert "stem" in run._command(step, step.words(False, VALUES)[0])
    assert run._environment(STEPS["speed", "models"])["EFFV2_DISABLE"] == "stem:triton"


def test_with_all_wrong_nothing_is_measured(run: Run, lines: list[str]) -> None:
    ops = [(op, "cuda", "bfloat16") for op in cases.OP_OF.values()]
    ops += [(op, "triton", "bfloat16") for op in cases.OP_OF.values()]
    run.checks.write_text(record("tests/gpu/test_x.py::test_x", *ops))
    run.step("speed", STEPS["speed", "operators"], 60, 60)
    assert lines == ["ok      speed operators: nothing is left that passed its tests"]


def test_the_sanitizer_looks_at_what_was_wrong(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.shutil, "which", lambda name, path=None: "/bin/compute-sanitizer")
    run.checks.write_text(
        record("tests/gpu/test_stem.py::test_x", ("stem", "cuda", "bfloat16"))
        + record("tests/gpu/test_triton_ops.py::test_z[conv_act_pool]", message="refused")
    )
    sanitized = STEPS["more", "memcheck"]
    (words,) = sanitized.words(False, VALUES)
    assert run._command(sanitized, words)[-2:] == ["-k", "stem or conv_act_pool"]


def test_with_nothing_wrong_a_network_is_measured_as_users_have_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller's variable would mean another thing from step to step."""
    monkeypatch.setenv("EFFV2_DISABLE", "stem")
    assert run._environment(STEPS["check", "latency"])["EFFV2_DISABLE"] == ""
    assert run._environment(STEPS["check", "tests"])["EFFV2_DISABLE"] == "none"


def test_the_end_of_a_step_that_prints_megabytes_is_kept(run: Run, lines: list[str]) -> None:
    step = python("talk", "print('begin'); print('x' * 3000000); print('end'); raise SystemExit(1)")
    run.part("check", (step, PRINT), 60)
    log = run.log.read_text()
    assert len(log) < 200_000 and "bytes were cut out" in log
    assert "begin" in log and log.index("end\n") < log.index("hello")
    assert lines[0].endswith("end")


def test_without_a_sanitizer_its_step_fails(
    run: Run, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.shutil, "which", lambda name, path=None: None)
    run.step("more", Step("memcheck", ("-c 0",), sanitizer="memcheck"), 10, 10)
    assert "no compute-sanitizer" in lines[0] and lines[0].startswith("FAILED")


def test_the_sanitizer_is_put_before_the_command(
    run: Run, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "as $@, caching off: $PYTORCH_NO_CUDA_MEMORY_CACHING"\n')
    tool.chmod(0o755)
    monkeypatch.setattr(runner.shutil, "which", lambda name, path=None: str(tool))
    run.step("more", Step("racecheck", ("-c 0",), sanitizer="racecheck"), 10, 10)
    assert lines[0].startswith("ok")
    log = run.log.read_text()
    assert "as --tool racecheck --error-exitcode 1" in log and "caching off: 1" in log


def test_every_step_names_what_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suites, commands, tests, networks and implementations; nothing is left to be filled in."""
    tuned: list = []
    monkeypatch.setattr(tune, "run", tuned.append)
    for step in STEPS.values():
        assert len(step.sizes) == len(step.commands)
        for small in (False, True):
            for words in step.words(small, VALUES):
                assert not any("{" in word for word in words)
                if words[:2] == ["-m", "benchmarks"]:
                    named = words[2 : next(n for n, w in enumerate(words) if w.startswith("--"))]
                    assert named and set(named) <= set(SUITES)
                    asked = suites_parser().parse_args(words[2:])
                    assert asked.time_budget and asked.small == small
                    known = operators.IMPLS if step.name == "operators" else INFERENCE
                    assert set(asked.impl or ()) <= set(known)
                    assert all(find(name) for name in asked.models or ())
                elif words[:3] == ["-m", "effv2_kernels", "tune"]:
                    command_line(words[2:])
                    assert tuned.pop().output == "/out"
                elif words[:2] == ["-m", "pytest"]:
                    assert (runner.ROOT / words[2]).exists()


def test_latency_comes_before_what_can_take_any_time() -> None:
    """A batch of one is what people feel: time is kept for it whatever the tests take."""
    names = [step.name for step in PARTS["check"]]
    assert names.index("latency") == len(names) - 1
    assert STEPS["check", "latency"].least >= 45
    for part in PARTS:
        assert sum(step.least for step in PARTS[part]) < 60 * gpu.MINUTES


def test_the_commands_that_are_to_be_copied_are_understood() -> None:
    text = (runner.ROOT / "CONTRIBUTING.md").read_text()
    lines = re.findall(r"^make gpu (.*?);.*# limit (\d+) s", text, re.MULTILINE)
    given = [dict(w.partition("=")[::2] for w in shlex.split(rest)) for rest, _ in lines]
    assert [words["PART"] for words in given] == list(PARTS)
    # Of a quarter of an hour, with room for the start and transfers.
    assert sum(int(limit) for _, limit in lines) < 14 * 60
    for words, (_, limit) in zip(given, lines, strict=True):
        steps = PARTS[words["PART"]]
        asked = words["STEPS"].split() if "STEPS" in words else [step.name for step in steps]
        assert set(asked) <= {step.name for step in steps}
        seconds = 60 * float(words["MINUTES"])
        assert sum(step.least for step in steps if step.name in asked) + 60 < seconds < int(limit)


def test_the_op_of_each_suite() -> None:
    assert set(cases.OP_OF) == set(cases.SUITES)
    for suite, op in cases.OP_OF.items():
        assert {case.op for case in operators.in_networks(suite).values()} == {op}


@pytest.mark.parametrize("option", [[], ["--no-build"]])
def test_a_library_that_came_with_the_tree_is_looked_for_and_not_built(
    option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(Run, "step", lambda self, part, step, *_: begun.append(step.name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    here = results.environment(torch.device("cpu"))
    monkeypatch.setattr(results, "environment", lambda device: here)
    monkeypatch.setattr(results, "device_name", lambda device: here.gpu)
    monkeypatch.setenv("EFFV2_COMMIT", "tested")
    command = ["gpu", "--part", "check", "--steps", "latency", "--results", str(tmp_path)]
    assert main([*command, *option]) == 0
    assert begun == [*([] if option else ["build"]), "native", "latency"]


def test_a_run_without_the_native_library_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import native

    status = native._native.NativeStatus(False, "not built", None)
    monkeypatch.setattr(native._native, "load", lambda: status)
    assert native.main() == 1


def test_a_picture_that_fails_does_not_end_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise ImportError("no matplotlib")

    monkeypatch.setattr(gpu.plots, "draw", fail)
    gpu._draw(run)
    assert run.failed == ["plots: ImportError: no matplotlib"]


def test_the_architecture_of_a_gpu() -> None:
    assert [architecture(c) for c in [(8, 0), (9, 0), (10, 0), (12, 0)]] == [
        "80",
        "90a",
        "100",
        "120",
    ]


def test_arguments_that_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--steps", "magic"]) == 2
    assert main(["gpu", "--part", "check", "--steps", "tune"]) == 2
    assert "no step tune" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["gpu"]) == 2
        assert "no CUDA GPU" in capsys.readouterr().err


def test_a_case_that_does_not_end_ends_its_process_and_says_where(tmp_path: Path) -> None:
    code = (
        "import time, torch\n"
        "from benchmarks import measure\nfrom benchmarks.options import Options\n"
        "options = Options(torch.device('cpu'))\n"
        "assert measure.case('quick', options, lambda: [1], limit=60.0) == [1]\n"
        "def hang(): time.sleep(60)\n"
        "measure.case('stem 8x8', options, hang, limit=1.0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=runner.ROOT, timeout=50
    )
    assert done.returncode == 1
    assert "begun: stem 8x8" in done.stderr and "in hang" in done.stderr


def test_a_lost_context_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every later case of it would fail; whoever runs it goes on with the next suite."""
    from benchmarks import measure

    calls = []

    def lose(options):
        calls.append(1)
        raise measure.ContextLost("after a case")
        yield

    for name in ("stem", "gate"):
        suite = SUITES[name]
        monkeypatch.setitem(SUITES, name, type(suite)(name, "", lose))
    assert main(["stem", "gate", "--device", "cpu", "--out", str(tmp_path)]) == measure.LOST
    assert calls == [1] and "context is lost after a case" in capsys.readouterr().err
    assert results.read(tmp_path / "results.csv") == []
