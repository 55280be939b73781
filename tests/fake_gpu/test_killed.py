"""Whatever ends a part, what it has measured can be read."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import correctness, results, tuned, verdict
from effv2_kernels.launch import tables
from tests.fake_gpu.machine import Machine, kill


def lines(name: str) -> Callable[[Path], int]:
    def count(folder: Path) -> int:
        path = folder / name
        return path.read_bytes().count(b"\n") if path.exists() else 0

    return count


def said(word: str) -> Callable[[Path], int]:
    """Whether a step has printed it."""

    def count(folder: Path) -> int:
        path = folder / "log.txt"
        return int(path.exists() and f"\n{word}" in path.read_text(errors="replace"))

    return count


def measured(suite: str) -> Callable[[Path], int]:
    """How many cases of a suite are in the CSV file."""

    def count(folder: Path) -> int:
        return len({r.case for r in results.read(folder / "results.csv") if r.suite == suite})

    return count


#: Part and steps, what is counted, and at how many everything is killed.
MOMENTS = {
    "in the build": ("check", "tests", said("running build_ext"), 1),
    "among the tests": ("check", "tests", lines("checks.jsonl"), 4),
    "after a latency": ("check", "latency", measured("latency"), 1),
    "among the operators": ("speed", "operators", measured("expand_depthwise"), 3),
    "while tuning": ("more", "tune", lines("tuning.jsonl"), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed(moment: str, machine: Machine, tmp_path: Path) -> None:
    part, steps, count, enough = MOMENTS[moment]
    folder = tmp_path / "results"
    process = machine.popen(
        [
            *("make", "--no-print-directory", "gpu", f"PYTHON={sys.executable}", "GPU=--small"),
            *(f"PART={part}", f"STEPS={steps}", f"RESULTS={folder}", "TESTS=-k stem"),
        ],
        tmp_path / "output.txt",
    )
    end = time.monotonic() + 200
    try:
        while count(folder) < enough and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        seen = count(folder)
    finally:
        kill(process)
    assert seen >= enough, (tmp_path / "output.txt").read_text()
    assert count(folder) >= seen
    # What was seen is there, whole, and so is all else.
    rows = results.read(folder / "results.csv")
    assert all(row.value and float(row.value) >= 0 for row in rows)
    records = correctness.read(folder / "checks.jsonl")
    if "test" in moment:
        assert len(records) >= enough and all(r["outcome"] == "passed" for r in records)
        assert any(record["checks"] for record in records)
    if "tuning" in moment:
        times = tuned.read(folder / "tuning.jsonl")
        assert len(times) >= enough
        assert len(tables.read(folder / "nvidia_h200.json")) >= len(times)
    text = verdict.text(folder, limit=verdict.LIMIT)
    assert bool(text) == bool(rows or records)


@pytest.mark.slow
def test_a_part_that_is_asked_to_end_says_what_it_found(machine: Machine, tmp_path: Path) -> None:
    """As `timeout` asks, and whoever lends a GPU; twice, as `make` does if it is asked itself."""
    folder = tmp_path / "results"
    command = ["python", "-m", "benchmarks", "gpu", "--small", "--results", str(folder)]
    process = machine.popen([*command, "--steps", "latency operators"], tmp_path / "output.txt")
    end = time.monotonic() + 200
    try:
        while not measured("latency")(folder) and time.monotonic() < end:
            time.sleep(0.1)
        process.terminate()
        process.terminate()
        assert process.wait(60) == 1
    finally:
        kill(process)
    output = (tmp_path / "output.txt").read_text()
    assert "latency tf_efficientnetv2_b0" in output.partition("== verdict")[2]
    assert output.rstrip().endswith("stopped")
