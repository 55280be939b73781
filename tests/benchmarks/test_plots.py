from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import plots, results
from benchmarks.recipe.plans import FIXED, PROGRESSIVE, V2
from benchmarks.results import Row

pytest.importorskip("matplotlib", reason="matplotlib comes with the demo extra")


def row(suite: str, case: str, impl: str, metric: str, value: float, resolution: int = 384) -> Row:
    make = results.static_maker(suite=suite, case=case, batch=8, resolution=resolution)
    return replace(make(impl, metric, "", value), gpu="NVIDIA H200")


ROWS = {
    "accuracy": [row("models", "timm efficientnetv2_s", "effv2", "throughput", 9000.0)],
    "speedup": [row("models", "timm x", "effv2", "speedup_vs_eager_nhwc", 1.5)],
    "blocks": [
        row("roofline", "timm x: stem (1 x ConvBNAct)", "effv2", "block_us", 20.0),
        row("roofline", "timm x: stem (1 x ConvBNAct)", "effv2", "floor_us", 12.0),
    ],
    "operators": [
        row("gate", "24 to 6", "effv2", "bandwidth", 900.0),
        row("gate", "24 to 6", "effv2", "arithmetic", 0.4),
        row("ceilings", "copy", "pytorch", "bandwidth", 4300.0),
        row("ceilings", "matrix product", "pytorch", "rate", 790.0),
    ],
    "floors": [
        replace(row("roofline", f"timm x: s (1 x {kind} 3)", level, "floor on x", 3.0), gpu="none")
        for kind in ("ConvBNAct", "FusedMBConv", "MBConv")
        for level in ("eager", "on_chip")
    ],
    "recipe_sizes": [
        row("recipe", f"{V2}: {FIXED.name}", f"seed_{seed}", "top1", 90.0 + seed) for seed in (1, 2)
    ],
    "recipe_course": [
        row("recipe", f"{V2}: {plan.name}", "seed_1", f"{metric} after epoch {epoch}", 10.0 * epoch)
        for plan in (FIXED, PROGRESSIVE)
        for metric in ("top1", "multiply_adds", "size", "magnitude")
        for epoch in (1, 2, 3)
    ],
}


@pytest.mark.parametrize("name", plots.PLOTS)
def test_a_picture_is_drawn_where_there_are_numbers_for_it(name: str, tmp_path: Path) -> None:
    results.upsert(tmp_path / "results.csv", ROWS[name])
    assert plots.draw(tmp_path) == [tmp_path / f"{name}.png"]
    assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_accuracy_is_shown_only_at_the_size_that_it_is_published_for(tmp_path: Path) -> None:
    smaller = [replace(r, resolution="224") for r in ROWS["accuracy"]]
    results.upsert(tmp_path / "results.csv", smaller)
    assert plots.draw(tmp_path) == []


def test_missing_numbers_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plots.draw(tmp_path) == []
    said = capsys.readouterr().err
    assert all(name in said for name in plots.PLOTS)
