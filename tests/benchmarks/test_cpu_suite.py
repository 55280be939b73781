from __future__ import annotations

import pytest
import torch

from benchmarks import implementations, pairs, quiet

from .conftest import Run, keys

CPU = torch.device("cpu")
CASE = ("--batch", "1", "--dtype", "float32", "--threads", "1")


def test_suite_writes_latencies_and_ratios(small: Run, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    status, rows = small("cpu", *CASE, "--impl", "eager_nhwc", "effv2")
    assert status == 0
    assert keys(rows) == {
        ("eager_nchw", "latency_ms"),
        ("eager_nhwc", "latency_ms"),
        ("effv2", "latency_ms"),
        ("eager_nhwc", "speedup_vs_eager_nchw"),
        ("effv2", "speedup_vs_eager_nchw"),
        ("effv2", "speedup_vs_eager_nhwc"),
    }
    ratio = next(r for r in rows if r.metric == "speedup_vs_eager_nhwc")
    assert (ratio.samples, ratio.unit, ratio.batch, ratio.resolution) == ("2", "x", "1", "33")
    assert "speedup_vs_eager_nhwc" in capsys.readouterr().out
    assert torch.get_num_threads() == threads


def test_a_training_step_and_its_memory(small: Run) -> None:
    status, rows = small("cpu_train", *CASE, "--models", "efficientnetv2_b0")
    assert status == 0
    times = {(i, f"{clock}_ms") for i in ("eager_nhwc", "effv2") for clock in ("step", "process")}
    ratios = {("effv2", f"speedup{clock}_vs_eager_nhwc") for clock in ("", "_process")}
    peaks = {(impl, "peak_resident") for impl in ("eager_nhwc", "effv2")}
    assert keys(rows) == times | ratios | peaks
    peak = next(r for r in rows if r.metric == "peak_resident")
    assert 100 < float(peak.value) < 3000 and peak.unit == "MB"


@pytest.mark.parametrize("suite", ["cpu", "models", "latency"])
def test_a_network_with_a_wrong_output_is_not_timed(
    suite: str, small: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = implementations.inference

    def planted(name, model, images):
        call = honest(name, model, images)
        return (lambda: call() * 1.001) if name == "effv2" else call

    monkeypatch.setattr(implementations, "inference", planted)
    status, rows = small(suite, *CASE, "--impl", "effv2")
    assert status == 1
    assert "effv2" in capsys.readouterr().err
    assert not keys(rows, "effv2")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.1])
def test_check_refuses(value: float) -> None:
    reference = torch.ones(4, dtype=torch.float64)
    calls = {"eager": lambda: torch.ones(4), "ours": lambda: torch.full((4,), value)}
    with pytest.raises(implementations.WrongOutput, match="ours"):
        pairs.measure(calls, reference, "eager", 1, CPU)


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
