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
    assert len(found) == 20


def test_the_verdict_names_each_with_its_figures(records: list[correctness.Record]) -> None:
    text = correctness.text(records)
    assert "20 tests, 7 failed" in text and len(text) < 6000
    assert "test_wrong: error 1.0e-02" in text and "(n 7)" in text
    assert "illegal memory access" in text
    assert "FAILED test_planted.py::test_leaves_a_switch: " in text
    assert "test_passes_and_leaves_a_broken_context: worker" in text
    lines = {tuple(line.split()[:3]): line.split()[3:] for line in text.splitlines()}
    outputs, wrong, worst = lines["stem", "cuda", "float32"]
    assert (outputs, wrong) == ("13", "1") and float(worst) > 1000
    assert lines["stem", "triton", "bfloat16"] == ["1", "1", "1e+09"]
    assert lines["network", "cuda", "float32"][:2] == ["2", "1"]
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
    lines = verdict.text(tmp_path).splitlines()
    assert "0.500 ms  8.00x eager_nhwc  4.00x default" in lines[0]
    assert "256x48x48" in lines[2] and "40 % of its floor  0.80x eager_nhwc" in lines[2]
    assert "960x24x24" in lines[3]


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
    (tmp_path / "checks.jsonl").write_text("\n".join(lines))
    short, whole = verdict.text(tmp_path, verdict.SHORT), verdict.text(tmp_path)
    assert len(short) < 10000 < 40000 < len(whole)
    assert "900 tests, 60 failed" in short and "and 32 more, 3 at most" in short
    assert "and 40 more\n" in short
    assert short.splitlines()[-1] == "and 280 more, each 1.20x or more"
