"""The ablations of progressive learning: what is trained, and what the committed rows say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme, results
from benchmarks.recipe import pages, plans
from benchmarks.recipe.measured import Rows
from benchmarks.recipe.plans import FIXED, NOT_ADAPTIVE, PROGRESSIVE, V2, Plan, Run, one_size
from benchmarks.suites import recipe

from .conftest import Run as Command
from .conftest import keys

METRICS = ("top1", "log_loss", "multiply_adds", "process_seconds")


@pytest.fixture
def committed() -> Rows:
    return Rows(results.read_all())


def mean(found: Rows, plan: Plan, metric: str) -> float:
    measured = found.of(V2, plan, metric)
    assert measured is not None and len(measured.values) == 3
    return measured.mean


def test_progressive_is_as_good_as_one_size_for_less(committed: Rows) -> None:
    """The third of issue 13's shows."""
    assert mean(committed, PROGRESSIVE, "top1") >= mean(committed, FIXED, "top1")
    assert mean(committed, PROGRESSIVE, "log_loss") <= mean(committed, FIXED, "log_loss")
    for metric in ("multiply_adds", "process_seconds"):
        share = committed.share(V2, PROGRESSIVE, FIXED, metric)
        assert share is not None and share <= 0.7


@pytest.mark.parametrize("pair", plans.TABLE_13, ids=lambda pair: pair.title)
def test_adaptive_regularisation_is_as_good_as_without(committed: Rows, pair: plans.Pair) -> None:
    always, adaptive = pair.plans
    assert mean(committed, adaptive, "top1") >= mean(committed, always, "top1")
    assert mean(committed, adaptive, "log_loss") <= mean(committed, always, "log_loss")


def test_small_images_lose_more_by_augmentation(committed: Rows) -> None:
    """Up to the last magnitude of the progressive training; not beyond it, as the page says."""
    small, *_, large = plans.OUR_SIZES.values()
    lost = [
        mean(committed, one_size(size, 0.0), "top1") - mean(committed, one_size(size, 5.0), "top1")
        for size in (small, large)
    ]
    assert lost[0] > lost[1]


def test_every_plan_has_its_committed_rows(committed: Rows) -> None:
    for network, plan in {run for table in plans.tables().values() for run in table}:
        for metric in METRICS:
            measured = committed.of(network, plan, metric)
            assert measured is not None and len(measured.values) == len(plans.SEEDS), plan.name
    for plan in (FIXED, PROGRESSIVE):
        assert max(committed.course(V2, plan, "top1")) == plans.EPOCHS


def test_the_schedules_are_as_their_names_say() -> None:
    stages = PROGRESSIVE.schedule(epochs=30.0, seed=0).stages
    assert [stage.size for stage in stages] == [48, 64, 80, 96]
    assert [stage.regularisation.magnitude for stage in stages] == pytest.approx(
        [0, 5 / 3, 10 / 3, 5]
    )
    always = NOT_ADAPTIVE.schedule(epochs=30.0, seed=0).stages
    assert {stage.regularisation for stage in always} == {stages[-1].regularisation}
    assert FIXED.schedule(epochs=30.0, seed=0).stages[0].size == 96
    random = plans.RANDOM.schedule(epochs=30.0, seed=0).stages
    assert len(random) == 15 and len({stage.size for stage in random}) > 5
    assert plans.RANDOM.schedule(epochs=30.0, seed=1).stages != random


def test_runs_are_shared_among_tables() -> None:
    everything = list(plans.runs((), (1, 2)))
    assert len(everything) == len(set(everything))
    assert Run(V2, PROGRESSIVE, 2, plans.EPOCHS, plans.TRAINING) in everything
    some = list(plans.runs((5,), (3,)))
    assert len(some) == 10 and {run.seed for run in some} == {3}
    with pytest.raises(ValueError, match="--tables 7"):
        plans.runs((7,), (1,)).__next__()


def test_a_training_and_its_course(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    pytest.importorskip("sklearn", reason="scikit-learn comes with the test extra")
    plan = Plan((32, 40), (0.0, 5.0), stages=2)
    for course in (False, True):
        results.upsert(
            tmp_path / "x.csv", recipe.rows(recipe.train(Run(V2, plan, 1, 2.0, 32, course)))
        )
    found = Rows(results.read_all(tmp_path))
    for metric in METRICS:
        measured = found.of(V2, plan, metric)
        assert measured is not None and measured.mean > 0
    assert found.course(V2, plan, "size") == {0.5: 32, 1.0: 32, 1.5: 40, 2.0: 40}
    assert found.course(V2, plan, "magnitude") == {0.5: 0, 1.0: 0, 1.5: 5, 2.0: 5}
    macs = found.of(V2, plan, "multiply_adds")
    assert macs is not None
    assert found.course(V2, plan, "multiply_adds")[2.0] == pytest.approx(macs.mean, rel=1e-3)


def test_the_command_trains_what_it_is_asked_for(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    pytest.importorskip("sklearn", reason="scikit-learn comes with the test extra")
    monkeypatch.setattr(plans, "EPOCHS", 1.0)
    monkeypatch.setattr(plans, "TRAINING", 16)
    small: dict[int, Any] = {13: [(V2, one_size(32, 0.0))]}
    monkeypatch.setattr(plans, "tables", lambda: small)
    status, rows = run("recipe", "--tables", "13", "--seeds", "4")
    assert status == 0
    assert keys(rows) == {("seed_4", metric) for metric in METRICS}
    assert {row.case for row in rows} == {"V2, small: 32 px, magnitude 0"}
    status, _ = run("recipe", "--tables", "7")
    assert status == 1


def test_tables_say_what_is_missing() -> None:
    for name, write in readme.PAGES[readme.ROOT / "benchmarks" / "README.md"].items():
        if name.startswith("recipe") and name != "recipe schedules":
            assert "not measured" in write([])
    assert "48 to 96" in pages.schedules([])
