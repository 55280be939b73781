from __future__ import annotations

import math

import pytest
import torch

from effv2_kernels.measuring import agreement, load, timing

CPU = torch.device("cpu")


def test_quantiles_interpolate() -> None:
    q = timing.quantiles([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (q.median, q.p20, q.p80, q.samples) == (3.5, 2.0, 5.0, 6)
    assert timing.quantiles([0.1]) == timing.Quantiles(0.1, 0.1, 0.1, 1)
    with pytest.raises(ValueError, match="no samples"):
        timing.quantiles([])


def test_ratios_are_taken_within_a_round() -> None:
    # The machine is ten times as slow in the second round; the ratio does not notice.
    assert timing.paired_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]).median == 2.0
    with pytest.raises(ValueError):
        timing.paired_ratio([1.0], [1.0, 2.0])


def test_rounds_rotate_and_disturbed_ones_are_run_again() -> None:
    order: list[str] = []
    answers = iter([False, True, False, False])
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = timing.interleaved(calls, 3, CPU, lambda: next(answers))
    assert "".join(order) == "abc" + "bca" + "bca" + "cab"
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_errors_are_relative_and_never_nan() -> None:
    reference = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert agreement.relative_error(reference.float(), reference) == 0
    assert agreement.relative_error(reference * 1.5, reference) == pytest.approx(0.5)
    assert agreement.relative_error(torch.tensor([math.nan, 4.0]), reference) == math.inf
    assert agreement.relative_error(reference[:1], reference) == math.inf
    assert not agreement.acceptable(math.inf, 1e-3)
    assert not agreement.acceptable(2.1e-3, 1e-3)
    assert agreement.acceptable(1.9e-3, 1e-3)


def test_agreement_counts_images() -> None:
    eager = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    other = torch.tensor([[3.0, 2.0, 1.0], [2.0, 3.0, 1.0], [1.0, 2.0, 3.0]])
    found = agreement.compare(other, eager, eager.double(), top=2)
    assert (found.same_order, found.same_set, found.images) == (1, 2, 3)


def test_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0, "others": 5.0}
    monkeypatch.setattr(load.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(load, "seconds_of_others", lambda: clock["others"])
    monkeypatch.setattr(load.os, "cpu_count", lambda: 2)
    share = load.Share()
    clock.update(now=10.0, others=10.0)
    assert share.now() == pytest.approx(0.25)
