from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.__main__ import main
from benchmarks.compare import between
from benchmarks.results import Row


def row(value: float, spread: float, metric: str = "latency_ms", unit: str = "ms") -> Row:
    make = results.static_maker(suite="models", case="s", batch=1, resolution=384)
    made = make("effv2", metric, unit, value)
    return replace(made, p20=str(value - spread), p80=str(value + spread), samples="9")


@pytest.mark.parametrize(
    ("old", "new", "unit", "verdict"),
    [
        ((10, 1), (11, 1), "ms", ""),  # the spreads overlap
        ((10, 1), (13, 1), "ms", "worse"),
        ((10, 1), (7, 1), "ms", "better"),
        ((10, 1), (13, 1), "images/s", "better"),
        ((10, 1), (7, 1), "x", "worse"),
        ((10, 0.001), (10.01, 0.001), "us", "worse"),
        ((10, 1), (13, 1), "GFLOP", "other"),
    ],
)
def test_what_moved_by_more_than_its_spread(old, new, unit: str, verdict: str) -> None:
    (moved,) = between([row(*old, unit=unit)], [row(*new, unit=unit)])
    assert moved.verdict == verdict
    assert moved.ratio == pytest.approx(new[0] / old[0])


def test_only_what_both_have_is_compared() -> None:
    other = replace(row(1, 0), batch="8")
    assert between([row(1, 0)], [other]) == []
    assert len(between([row(1, 0), other], [other, row(2, 0)])) == 2


def test_a_number_that_was_read_once_may_wobble() -> None:
    once = replace(row(100, 0, unit="MB"), samples="1")
    for value, verdict in ((101, ""), (110, "worse"), (90, "better")):
        (moved,) = between([once], [replace(row(value, 0, unit="MB"), samples="1")])
        assert moved.verdict == verdict


def test_what_is_gone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "a.csv", tmp_path / "b.csv"
    results.upsert(before, [row(1, 0.1), replace(row(1, 0.1), impl="effv2_graph")])
    results.upsert(after, [row(1, 0.1)])
    assert main(["compare", str(before), str(after)]) == 1
    assert "effv2_graph" in capsys.readouterr().out


def test_the_exit_status_is_a_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"{name}.csv" for name in ("before", "same", "slower", "empty")}
    results.upsert(files["before"], [row(10, 1)])
    results.upsert(files["same"], [row(10.5, 1)])
    results.upsert(files["slower"], [row(20, 1)])
    results.upsert(files["empty"], [])
    statuses = [
        main(["compare", str(files["before"]), str(files[name])])
        for name in ("same", "slower", "empty")
    ]
    assert statuses == [0, 1, 2]
    printed = capsys.readouterr().out
    assert "worse" in printed and "2.000x" in printed and "no number is in both" in printed
