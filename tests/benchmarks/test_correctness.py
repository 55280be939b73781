"""What the GPU tests leave behind, and what is made of it: pytest runs on planted tests, with a
stand-in for a CUDA context that breaks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import correctness, results, verdict

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PLANTED = """
import time
import pytest, torch
from tests.gpu.verdicts import judge, judge_over

DEAD = []
# The process's context: broken by one test, for all that come after it in the same process.
torch.cuda.is_initialized = lambda: True
def synchronize(device=None):
    if DEAD:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
torch.cuda.synchronize = synchronize
RIGHT = torch.linspace(-1, 1, 999, dtype=torch.float64)

def test_leaves_a_switch(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")

@pytest.mark.parametrize("n", range(12))
def test_right(n):
    torch.cuda.synchronize()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        pass
    judge("stem", "cuda", f"n {n}", RIGHT.float(), RIGHT.float(), RIGHT)

def test_wrong():
    judge("stem", "cuda", "n 7", 1.01 * RIGHT.float(), RIGHT.float(), RIGHT)

def test_nan():
    judge("stem", "triton", "n 1", RIGHT.bfloat16() * torch.nan, RIGHT.bfloat16(), RIGHT)

def draws(error, number=4):
    for n in range(number):
        yield [(1 + error) * RIGHT.float()] * 2, (1 + 1e-3) * RIGHT.float(), RIGHT

def test_network():
    judge_over("network", "cuda", "b0", draws(1.9e-3))

def test_wrong_network():
    judge_over("network", "cuda", "s", draws(3e-3))

def test_breaks_the_context():
    DEAD.append(1)
    torch.cuda.synchronize()

def test_passes_and_leaves_a_broken_context():
    judge("gate", "cuda", "n 8", RIGHT.float(), RIGHT.float(), RIGHT)
    DEAD.append(1)

def test_hangs():
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[correctness.Record]:
    folder = tmp_path_factory.mktemp("tree")
    planted = folder / "tests" / "gpu"
    planted.mkdir(parents=True)
    for name in ("conftest.py", "verdicts.py"):
        text = (ROOT / "tests/gpu" / name).read_text()
        (planted / name).write_text(text.replace("LIMIT_SECONDS = 60", "LIMIT_SECONDS = 4"))
    (planted / "test_planted.py").write_text(PLANTED)
    (planted / "test_stem_again.py").write_text("import math\n\nmath.stem()\n")
    (planted.parent / "support.py").write_text((ROOT / "tests/support.py").read_text())
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-n", "2"]
    command += ["--import-mode=importlib"]
    kept = folder / "checks.jsonl"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "EFFV2_CHECKS": str(kept)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert "== verdict ==" in done.stdout, done.stdout + done.stderr
    return correctness.read(kept)


def outcomes(records: list[correctness.Record]) -> dict[str, str]:
    return {record["test"].rpartition("::")[2]: record["outcome"] for record in records}


def test_what_is_wrong_fails_and_nothing_else(records: list[correctness.Record]) -> None:
    found = outcomes(records)
    failed = {name for name, outcome in found.items() if outcome == "failed"}
    assert failed == {
        *("test_wrong", "test_nan", "test_breaks_the_context", "test_hangs"),
        *("test_wrong_network", "test_leaves_a_switch", "test_passes_and_leaves_a_broken_context"),
    }
    assert len(found) == 21
    assert found["tests/gpu/test_stem_again.py"] == correctness.UNCOLLECTED
    assert ("stem", "triton") in correctness.faulty(records)  # of test_nan, not of that file
    assert ("stem", "cuda") not in correctness.faulty(records)


def test_the_verdict_names_each_with_its_figures(records: list[correctness.Record]) -> None:
    text = "\n".join([*correctness.groups(records), *correctness.failures(records)])
    assert "20 tests, 7 failed" in text and len(text) < 6000
    missing = "NOT COLLECTED tests/gpu/test_stem_again.py: AttributeError: "
    assert [line.startswith(missing) for line in text.splitlines()].count(True) == 1
    assert "test_wrong: error 1.0e-02" in text and "(n 7)" in text
    assert "illegal memory access" in text
    assert "FAILED test_planted.py::test_leaves_a_switch: " in text
    assert "test_passes_and_leaves_a_broken_context: worker" in text
    lines = {tuple(line.split()[:3]): line.split()[3:] for line in text.splitlines()}
    right, wrong, worst = lines["stem", "cuda", "float32"]
    assert (right, wrong) == ("12", "1") and float(worst) > 1000
    assert lines["stem", "triton", "bfloat16"] == ["0", "1", "1e+09"]
    assert lines["network", "cuda", "float32"][:2] == ["1", "1"]
    assert "test_wrong_network: error 3.0e-03, PyTorch's 1.0e-03 (s)" in text


def test_rows_for_the_csv_file(records: list[correctness.Record], tmp_path: Path) -> None:
    results.upsert(tmp_path / "results.csv", correctness.rows(records, CPU))
    rows = results.read(tmp_path / "results.csv")
    values = {(r.case, r.impl, r.dtype, r.metric): r.value for r in rows}
    assert values["stem", "cuda", "float32", "outputs"] == "13"
    assert values["stem", "cuda", "float32", "wrong_outputs"] == "1"
    assert values["stem", "triton", "bfloat16", "worst_error_over_pytorch"] == "1e+09"


def test_a_run_of_no_test_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "checks.jsonl").write_text("")
    arguments = correctness.argparse.Namespace(checks=tmp_path / "checks.jsonl", device="cpu")
    assert correctness.command(arguments) == 1


def test_the_verdict_of_a_whole_run(tmp_path: Path) -> None:
    def rows(suite: str, case: str, batch: int, impl: str, metrics: dict[str, float]) -> list:
        make = results.maker(
            CPU, suite=suite, case=case, batch=batch, resolution=384, dtype="bfloat16"
        )
        return [make(impl, metric, "", results.quantiles([v])) for metric, v in metrics.items()]

    latency = {"latency_ms": 0.5, "speedup_vs_eager_nhwc": 8.0, "speedup_vs_compile_default": 4.0}
    slow = {"latency_us": 90.0, "part_of_floor": 0.4, "speedup_vs_eager_nhwc": 0.8}
    fast = {"latency_us": 60.0, "part_of_floor": 0.9, "speedup_vs_eager_nhwc": 3.0}
    found = rows("latency", "timm efficientnetv2_s", 1, "effv2_graph", latency)
    found += rows("depthwise", "960x24x24, k3 s1", 128, "effv2", fast)
    found += rows("depthwise", "256x48x48, k3 s2", 128, "effv2", slow)
    results.upsert(tmp_path / "results.csv", found)
    text = verdict.text(tmp_path)
    networks, slower, floors = (part.splitlines() for part in text.split("\n\n"))
    assert networks == [
        "latency efficientnetv2_s batch 1 bfloat16 effv2_graph                  "
        "0.500 ms  8.00x eager_nhwc  4.00x default"
    ]
    assert slower[0].startswith("1 of 2 operators' shapes are slower")
    assert "256x48x48" in slower[1] and "90.0 us  0.80x eager_nhwc" in slower[1]
    assert floors[1].startswith("depthwise batch 128 bfloat16, 2 shapes")
    assert floors[1].split()[-7:-3] == ["40", "65", "90", "worst:"]
    assert verdict.text(tmp_path, ["check"]) == networks[0]


def test_only_the_rows_of_a_commit(tmp_path: Path) -> None:
    make = results.maker(CPU, suite="models", case="timm b0", batch=1, resolution=9, dtype="bf16")
    row = make("effv2", "latency_ms", "ms", results.quantiles([1.0]))
    results.upsert(tmp_path / "results.csv", [row])
    assert "models b0" in verdict.text(tmp_path, commit=row.commit)
    assert verdict.text(tmp_path, commit="another") == ""


def test_the_verdict_of_a_run_over_everything_is_short(tmp_path: Path) -> None:
    """What comes back of a printed end is 12,000 characters, and what the steps printed is before
    it: all operators and networks, every group of tests, and many failures."""
    found, lines = [], []
    for n in range(300):
        make = results.maker(
            CPU, suite="expand_depthwise", case=f"{8 * n} to {n}x{n}, k3 s1 + residual", batch=128,
            resolution=0, dtype="bfloat16",
        )  # fmt: skip
        metrics = {"latency_us": 9.0, "part_of_floor": 0.5, "speedup_vs_eager_nhwc": 1 + n / 100}
        found += [make("effv2", name, "", results.quantiles([v])) for name, v in metrics.items()]
    for n in range(60):
        make = results.maker(
            CPU, suite="latency", case=f"timm efficientnetv2_{n}", batch=1, resolution=384,
            dtype="bfloat16",
        )  # fmt: skip
        metrics = {"latency_ms": 9.0, "speedup_vs_eager_nhwc": 2.0, "speedup_vs_compile_default": 2}
        found += [make("effv2", name, "", results.quantiles([v])) for name, v in metrics.items()]
    results.upsert(tmp_path / "results.csv", found)
    for n in range(900):
        check = {"op": f"squeeze_excite_gate{n % 13}", "engine": "triton", "passed": n >= 60}
        check |= {"dtype": f"float{n % 4}", "error": 3e-3, "pytorch": 1e-3, "case": "x 2x8x9" * 20}
        record = {"test": f"tests/gpu/test_triton_ops.py::test[{n}-{'k3' * 40}]", "message": ""}
        outcome = "passed" if n >= 60 else "failed"
        lines.append(json.dumps({**record, "outcome": outcome, "checks": [check]}))
    (tmp_path / "checks.jsonl").write_text("\n".join([*lines, ""]))
    short, whole = verdict.text(tmp_path, limit=verdict.LIMIT), verdict.text(tmp_path)
    assert len(short) <= verdict.LIMIT < 6000 and len(whole) > 20000
    assert "900 tests, 60 failed" in short and short.count("\nFAILED ") > 8
    assert short.count(" more") == 3  # of failures, groups and networks
    assert "300 shapes" in short


def test_a_section_is_cut_by_its_length_and_keeps_its_head() -> None:
    long, short = ["heading", *(f"line {n:04d}" for n in range(99))], ["heading", "one", "two"]
    failures = ["99 tests", *(f"FAILED {n:02d}" for n in range(99))]
    assert verdict.fitted([long, short], None) == [long, short]
    assert verdict.fitted([long, short], 100000) == [long, short]
    cut, whole = verdict.fitted([long, short], 300)
    assert whole == short and cut[0] == "heading" and cut[-1] == f"and {99 - len(cut[1:-1])} more"
    assert 250 < sum(len(line) + 1 for line in (*cut, *whole)) + 2 <= 300
    first, second = verdict.fitted([long, failures], 1000)
    assert len("".join(second)) > 1.5 * len("".join(first))
    assert [part[:2] for part in verdict.fitted([long, failures], 1)] == [long[:2], failures[:2]]


def record(test: str, dtype: str = "", message: str = "", op: str = "stem") -> correctness.Record:
    check = {"op": op, "engine": "cuda", "dtype": dtype, "case": "", "passed": False}
    checks = [{**check, "error": 1.0, "pytorch": 0.1}] if dtype else []
    return {"test": test, "outcome": "failed", "message": message, "checks": checks}


@pytest.mark.parametrize(
    ("found", "key"),
    [
        (record("tests/gpu/test_stem.py::test_x", "bfloat16"), ("stem", "cuda")),
        (record("tests/gpu/test_stem.py::test_x", "float32"), None),
        (record("tests/gpu/test_a.py::test_x", "bfloat16", op="network"), None),
        (record("tests/gpu/test_depthwise_bias_act.py::t[1]"), ("depthwise_bias_act", "cuda")),
        (record("tests/gpu/test_expand_depthwise.py::test_x"), ("expand_depthwise", "cuda")),
        (record("tests/gpu/test_small.py::t[stem-torch.bfloat16-effv2]"), ("stem", "cuda")),
        (
            record("tests/gpu/test_small.py::t[stem-torch.bfloat16-effv2_triton]"),
            ("stem", "triton"),
        ),
        (record("tests/gpu/test_small.py::t[fused_mbconv-x-effv2]"), ("fused_mbconv", "triton")),
        (record("tests/gpu/test_triton_ops.py::t[tf32-stem]"), ("stem", "triton")),
        (record("tests/gpu/test_capture.py::test_x"), None),
        (record("tests/gpu/test_stem.py::test_x", message="CUDA out of memory."), None),
    ],
    ids=str,
)
def test_what_is_faulty(found: correctness.Record, key: tuple[str, str] | None) -> None:
    assert list(correctness.faulty([found])) == ([key] if key else [])
    assert correctness.faulty([{**found, "outcome": "passed"}]) == {}


def test_tests_are_named_after_their_op() -> None:
    """By which a test that leaves no figures is counted."""
    from effv2_kernels.launch.op_numbers import OPS

    named = {path.stem.removeprefix("test_") for path in (ROOT / "tests/gpu").glob("test_*.py")}
    about_all = {"capture", "live_weights", "small", "triton_models", "triton_ops"}
    assert named - about_all <= set(OPS)


def test_failures_alike_share_a_line() -> None:
    reason = "PTXASError: refused " + "x" * 150
    found = [record(f"tests/gpu/a.py::t[{n}]", message=f"{reason}, /tmp/{n}.ptx") for n in "abc"]
    found.append(record("tests/gpu/b.py::t", message="another"))
    assert correctness.failures(found) == [
        "4 tests, 4 failed",
        f"FAILED a.py::t[a] and 2 more: {reason}, /tmp/a.ptx",
        "FAILED b.py::t: another",
    ]


def test_what_was_being_written_when_all_was_killed_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "checks.jsonl"
    whole = [json.dumps(record(f"tests/gpu/a.py::t[{n}]", "bfloat16")) for n in range(3)]
    path.write_text("\n".join(whole)[:-5])
    assert [r["test"] for r in correctness.read(path)] == [json.loads(w)["test"] for w in whole[:2]]
    assert correctness.read(tmp_path / "nothing.jsonl") == []
