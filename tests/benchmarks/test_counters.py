"""What is read out of Nsight Compute's table, and the page's table of it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks import counters, pages, results
from benchmarks.__main__ import main

CPU = torch.device("cpu")
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = {"long_scoreboard": "4.5", "wait": "0.91", "barrier": "0", "selected": "9", "membar": "1"}
COLUMNS = [
    *("ID", counters._RANGE, "Kernel Name", counters._TIME),
    *(column for _, column in counters.METRICS.values()),
    *(STALL.format(name) for name in STALLS),
]
NAMES = (
    "void effv2::depthwise::depthwise_kernel<__nv_bfloat16, 3, 1>(effv2::DepthwiseParams)",
    "pointwise_kernel",
    "void at::vectorized_elementwise_kernel<4, at::CUDAFunctor_add<float>>(int)",
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32",
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """As ncu prints it: what it has to say, names, units, a line a launch."""
    path = tmp_path / "counters.csv"
    with path.open("w", newline="") as file:
        file.write("==PROF== Connected to process 7\n==WARNING== clocks are as they are\n")
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(COLUMNS)
        writer.writerow(["", "", "", "ns", *["%"] * (len(COLUMNS) - 4)])
        for number, name in enumerate(NAMES):
            where = f' "<default domain>:depthwise|8x{number}, k3 s1|128|bfloat16:none:none"'
            values = [f"{n}.25" for n in range(len(counters.METRICS))]
            writer.writerow([str(number), where, name, "48,896", *values, *STALLS.values()])
    return path


def test_our_kernels_with_their_numbers(raw: Path) -> None:
    rows = list(counters.rows(raw, CPU))
    assert {(row.case, row.impl) for row in rows} == {
        ("depthwise 8x0, k3 s1", "depthwise"),
        ("depthwise 8x1, k3 s1", "pointwise"),
    }
    first = {row.metric: row.value for row in rows if row.impl == "depthwise"}
    assert first["latency_us"] == "48.9" and first["dram"] == "0.25" and first["l2_hits"] == "2.25"
    stalls = [metric for metric in first if metric.startswith("stall_")]
    assert stalls == ["stall_long_scoreboard", "stall_membar", "stall_wait"]


def test_the_pages_table(raw: Path) -> None:
    heading, _, *lines = pages.counters(list(counters.rows(raw, CPU))).splitlines()
    assert heading.count("|") == lines[0].count("|") and len(lines) == 2
    assert "| 48.9 | 0 % | 1 % |" in lines[0] and "| long scoreboard |" in lines[0]
    assert "not measured" in pages.counters([])


def test_what_ncu_says_is_read_each_time_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: Path
) -> None:
    """By a stand-in, which copies what it is to say to where it is told, and then says nothing."""
    tool, out, said = tmp_path / "ncu", tmp_path / "out", tmp_path / "said.txt"
    tool.write_text(
        '#!/bin/sh\nwhile [ "$1" != --log-file ]; do shift; done\n'
        f'[ -e {said} ] && cp {said} "$2"\necho "$@" >{tmp_path}/asked\n'
    )
    tool.chmod(0o755)
    said.write_text(raw.read_text())
    monkeypatch.setattr(counters, "ncu", lambda: str(tool))
    monkeypatch.setattr("sys.argv", ["benchmarks", "counters", "--device", "cpu"])
    command = ["counters", "--device", "cpu", "--out", str(out), "--suites", "depthwise"]
    assert main(command) == 0
    assert "-m benchmarks counters --inside --device cpu" in (tmp_path / "asked").read_text()
    assert {row.suite for row in results.read_all(out)} == {"counters"}
    (out / "results.csv").unlink()
    said.unlink()
    main(command)
    assert not results.read(out / "results.csv")


def test_without_ncu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(counters, "ncu", lambda: None)
    assert main(["counters", "--device", "cpu"]) == 2
    assert "no ncu" in capsys.readouterr().err


def test_a_run_that_came_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "counters.csv").write_text("==ERROR== the device is busy\n")
    assert not list(counters.rows(tmp_path / "counters.csv", CPU))
