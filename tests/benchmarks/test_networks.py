"""The suites that run whole networks, at sizes that take a second."""

from __future__ import annotations

import pytest
import torch

import python_ref
from benchmarks.implementations import WrongOutput
from benchmarks.suites import placement, training

from .conftest import NETWORK, Run, keys

CPU = torch.device("cpu")


def test_models_and_latency(small: Run) -> None:
    status, rows = small("models", "latency", "--batch", "2", "--dtype", "float32")
    assert status == 0
    for suite in ("models", "latency"):
        found = [r for r in rows if r.suite == suite]
        assert {r.impl for r in found} == {"eager_nchw", "eager_nhwc", "effv2"}
        assert {"latency_ms", "throughput", "speedup_vs_eager_nhwc"} <= {r.metric for r in found}
        milliseconds = next(r for r in found if (r.impl, r.metric) == ("effv2", "latency_ms"))
        rate = next(r for r in found if (r.impl, r.metric) == ("effv2", "throughput"))
        assert float(rate.value) == pytest.approx(2e3 / float(milliseconds.value), rel=0.5)


def test_autocast_is_a_dtype_of_its_own(small: Run) -> None:
    status, rows = small("models", "--batch", "1", "--dtype", "autocast_bfloat16")
    assert status == 0
    assert {r.dtype for r in rows} == {"autocast_bfloat16"}
    assert ("effv2", "throughput") in keys(rows)


def test_an_implementation_that_cannot_run_is_left_out_with_its_reason(
    small: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = small("latency", "--impl", "effv2_graph", "effv2")
    assert status == 0
    assert "effv2_graph" in capsys.readouterr().err
    assert {r.impl for r in rows} == {"eager_nchw", "effv2"}


def test_a_peer_has_no_effv2(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    options = ("--models", "test_vit", "--resolution", "160", "--rounds", "2", "--batch", "1")
    status, rows = run("models", "--device", "cpu", *options)
    assert status == 0
    assert {r.impl for r in rows} == {"eager_nchw", "eager_nhwc"}
    assert "no block that effv2_kernels knows" in capsys.readouterr().err


def test_a_spent_budget_begins_nothing_and_says_so(
    small: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = small("models", "train", "depthwise", "--time-budget", "0")
    assert status == 0
    assert not rows
    assert capsys.readouterr().err.count("time budget") >= 3


def test_train_measures_each_part(small: Run) -> None:
    status, rows = small("train", "memory", "--batch", "2", "--dtype", "float32")
    assert status == 0
    parts = {"forward_ms", "backward_ms", "optimizer_ms", "step_ms", "throughput"}
    assert parts <= {metric for impl, metric in keys(rows) if impl == "effv2"}
    value = {r.metric: float(r.value) for r in rows if r.impl == "eager_nhwc"}
    whole = sum(value[f"{part}_ms"] for part in training.PARTS)
    assert value["step_ms"] == pytest.approx(whole, rel=0.3)
    assert ("eager_nchw", "kept_for_backward") in keys(rows)


def test_a_wrong_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = training.implementations.training

    def planted(name, model):
        trained = honest(name, model)
        if name == "effv2":
            next(trained.parameters()).register_hook(lambda gradient: 1.5 * gradient)
        return trained

    monkeypatch.setattr(training.implementations, "training", planted)
    model = python_ref.create("b0", num_classes=1000, drop_path=0.0, dropout=0.0)
    training.check("eager_nhwc", model, 33, "float32", CPU)
    with pytest.raises(WrongOutput, match="effv2.*gradient"):
        training.check("effv2", model, 33, "float32", CPU)


def test_memory_counts_what_a_convolution_keeps() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU())
    images, labels = torch.randn(2, 3, 8, 8), torch.randint(4, (2, 8, 8))
    step = training.Step(model, images, labels, torch.autocast("cpu", enabled=False))
    kept = training.kept_for_backward(step)
    feature_map = 2 * 4 * 8 * 8 * 4
    # ReLU's output and the log-probabilities; the loss's own few bytes and the labels.
    assert 2 * feature_map <= kept <= 2 * feature_map + labels.nbytes + 64


def test_placement_beside_the_paper(run: Run) -> None:
    status, rows = run("placement", "--device", "cpu", "--time-budget", "0")
    assert status == 0
    ratios = {(r.case, r.metric): float(r.value) for r in rows if r.metric.endswith("over_paper")}
    assert len({case for case, _ in ratios}) == 7
    # Which reading gives which row of table 3 (python_ref.Placement says why both are needed).
    for case in ("no fused", "fused stages 1-3, 3x3 kernels"):
        assert ratios[f"B4, {case}", "parameters_over_paper"] == pytest.approx(1, abs=0.01)
        assert ratios[f"B4, {case}", "multiply_adds_over_paper"] == pytest.approx(1, abs=0.03)
    for case in ("fused stages 1-5, B4's kernels", "fused stages 1-7, B4's kernels"):
        assert ratios[f"B4, {case}", "parameters_over_paper"] == pytest.approx(1, abs=0.01)
        assert ratios[f"B4, {case}", "multiply_adds_over_paper"] == pytest.approx(1, abs=0.09)
    assert {r.gpu for r in rows} == {"none"}


def test_placement_and_headline_measure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "TABLE_3", placement.TABLE_3[:1])
    options = ("--device", "cpu", "--resolution", "33", "--rounds", "2", "--impl", "eager_nhwc")
    status, rows = run("placement", "headline", *options)
    assert status == 0
    measured = {(r.suite, r.metric) for r in rows if r.gpu != "none"}
    assert {
        ("placement", "inference_throughput"),
        ("placement", "training_throughput"),
        ("headline", "inference_speedup"),
        ("headline", "training_speedup"),
    } <= measured
    quoted = {float(r.value) for r in rows if r.impl == "paper" and r.metric == "training_speedup"}
    assert {round(value, 1) for value in quoted} == {10.7, 4.2, 6.6}


def test_compile_is_measured_too(run: Run) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    options = ("--models", "test_efficientnet", "--resolution", "33", "--rounds", "2")
    status, rows = run("models", *options, "--batch", "1", "--device", "cpu", "--impl",
                       "compile_default")  # fmt: skip
    assert status == 0
    assert ("compile_default", "speedup_vs_eager_nchw") in keys(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models", "--models", "no_such_network"), "no_such_network"),
        (("models", "--impl", "magic"), "magic"),
        (("depthwise", "--shape", "c8,x"), "c8,x"),
        (("depthwise", "--impl", "magic"), "magic"),
        (("depthwise", "--dtype", "autocast_float16"), "autocast"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_status_1(
    run: Run, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = run(*arguments, "--device", "cpu", "--rounds", "1")
    assert status == 1
    assert not rows
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_device_that_is_not_there() -> None:
    from benchmarks.__main__ import main

    assert main(["models", *NETWORK, "--device", "xpu"]) == 2
