from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import quiet, results, timing
from benchmarks.__main__ import main
from benchmarks.suites import cpu

CPU = torch.device("cpu")
NETWORK = ["--model", "efficientnetv2_b0", "--library", "python_ref"]
CASE = ["--resolution", "33", "--batch", "1", "--dtype", "float32"]
SMALL = ["cpu", *NETWORK, *CASE, "--pairs", "2", "--no-quiet", "--threads", "1"]


def test_suite_writes_latencies_and_ratios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, threads = tmp_path / "cpu.csv", torch.get_num_threads()
    assert main([*SMALL, "--impl", "eager_nhwc", "effv2", "--out", str(out)]) == 0
    rows = {(row.impl, row.metric): row for row in results.read(out)}
    assert set(rows) == {
        ("eager_nchw", "latency_ms"),
        ("eager_nhwc", "latency_ms"),
        ("effv2", "latency_ms"),
        ("eager_nhwc", "speedup_vs_eager_nchw"),
        ("effv2", "speedup_vs_eager_nchw"),
        ("effv2", "speedup_vs_eager_nhwc"),
    }
    ratio = rows["effv2", "speedup_vs_eager_nhwc"]
    assert (ratio.samples, ratio.unit, ratio.batch, ratio.resolution) == ("2", "x", "1", "33")
    assert "speedup_vs_eager_nhwc" in capsys.readouterr().out
    assert torch.get_num_threads() == threads


def test_a_wrong_output_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = cpu.implementations

    def planted(names, model, images):
        calls = honest(names, model, images)
        right = calls["effv2"]
        calls["effv2"] = lambda: right() * 1.001
        return calls

    monkeypatch.setattr(cpu, "implementations", planted)
    out = tmp_path / "cpu.csv"
    assert main([*SMALL, "--impl", "effv2", "--out", str(out)]) == 1
    assert "effv2" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.1])
def test_check_refuses(value: float) -> None:
    reference = torch.ones(4, dtype=torch.float64)
    calls = {"eager": lambda: torch.ones(4), "ours": lambda: torch.full((4,), value)}
    with pytest.raises(timing.WrongOutput, match="ours"):
        timing.measure_pairs(calls, reference, "eager", 1, CPU)


def test_monitor_counts_others_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0, "others": 0.0}
    monkeypatch.setattr(quiet.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(quiet.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(quiet, "seconds_of_others", lambda: clock["others"])
    monkeypatch.setattr(quiet.os, "cpu_count", lambda: 2)
    monitor = quiet.Monitor(share=0.1, patience=3.0)
    clock.update(now=1.0, others=0.1)  # 5 % of two cores
    assert not monitor.disturbed()
    clock.update(now=2.0, others=1.1)
    assert monitor.disturbed()
    clock.update(now=3.0, others=1.1)
    assert not monitor.disturbed()
    clock.update(now=6.0, others=4.1)
    with pytest.raises(quiet.MachineBusy):
        monitor.disturbed()
