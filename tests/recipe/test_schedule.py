"""Schedules are the paper's and the official code's."""

from __future__ import annotations

import math

import pytest

from python_ref.recipe import (
    RecipeError,
    Regularisation,
    Schedule,
    Stage,
    fixed,
    preset,
    progressive,
)
from python_ref.recipe.paper import NETWORKS

# Sizes; and RandAugment's magnitude, mixup, cutmix, dropout of the first and of the last stage.
PAPER = {
    "s": ([128, 185, 243, 300], (5, 0, 0, 0.1), (15, 0, 0, 0.3)),
    "m": ([128, 212, 296, 380], (5, 0, 0, 0.1), (20, 0.2, 0, 0.4)),
    "l": ([128, 212, 296, 380], (5, 0, 0, 0.1), (25, 0.5, 0, 0.5)),
    "xl": ([128, 212, 296, 380], (5, 0, 0, 0.1), (25, 0.5, 0, 0.5)),
    "b0": ([192], (0, 0, 0, 0.2), (0, 0, 0, 0.2)),
    "b1": ([192], (0, 0, 0, 0.2), (0, 0, 0, 0.2)),
    "b2": ([208], (0, 0, 0, 0.3), (0, 0, 0, 0.3)),
    "b3": ([240], (0, 0, 0, 0.3), (0, 0, 0, 0.3)),
}
OFFICIAL = {
    "s": ([171, 214, 257, 300], (5, 0, 0, 0.2), (10, 0, 0, 0.2)),
    "m": ([192, 256, 320, 384], (5, 0, 0, 0.3), (15, 0.2, 0.2, 0.3)),
    "l": ([192, 256, 320, 384], (5, 0, 0, 0.4), (20, 0.5, 0.5, 0.4)),
    "xl": ([192, 256, 320, 384], (5, 0, 0, 0.4), (20, 0.5, 0.5, 0.4)),
    "b0": ([144, 160, 176, 192], (0, 0, 0, 0.2), (0, 0, 0, 0.2)),
    "b1": ([144, 160, 176, 192], (0, 0, 0, 0.2), (0, 0, 0, 0.2)),
    "b2": ([148, 168, 188, 208], (0, 0, 0, 0.3), (0, 0, 0, 0.3)),
    "b3": ([156, 184, 212, 240], (0, 0, 0, 0.3), (0, 0, 0, 0.3)),
}
# The third of four stages, in full, of the official code: 2/3 of the way.
OFFICIAL_THIRD = {"s": (8.333, 0), "m": (11.667, 0.1333), "l": (15, 0.3333), "xl": (15, 0.3333)}


def test_every_network_has_values() -> None:
    assert set(PAPER) == set(OFFICIAL) == set(NETWORKS)


@pytest.mark.parametrize("source, values", [("paper", PAPER), ("official", OFFICIAL)])
@pytest.mark.parametrize("network", NETWORKS)
def test_presets(source, values, network) -> None:
    sizes, first, last = values[network]
    made = preset(f"efficientnetv2_{network}", source)
    assert [stage.size for stage in made.stages] == sizes
    assert made.stages[0].regularisation == Regularisation(*map(float, first))
    assert made.stages[-1].regularisation == Regularisation(*map(float, last))
    assert made.epochs == pytest.approx(350)
    assert {stage.epochs for stage in made.stages} == {350 / len(sizes)}
    assert made.policy == ("autoaugment" if network.startswith("b") else "randaugment")


@pytest.mark.parametrize("network", OFFICIAL_THIRD)
def test_between(network) -> None:
    third = preset(network, "official").stages[2].regularisation
    assert (third.magnitude, third.mixup) == pytest.approx(OFFICIAL_THIRD[network], abs=1e-3)
    third = preset("m", "paper").stages[2].regularisation
    assert (third.magnitude, third.mixup, third.dropout) == pytest.approx((15, 0.4 / 3, 0.3))


def test_at() -> None:
    made = preset("s", epochs=8)
    assert [made.index(e) for e in (0, 1.99, 2, 5.5, 6, 7.9, 8, 100)] == [0, 0, 1, 2, 3, 3, 3, 3]
    assert made.at(2.5) == made.stages[1]
    with pytest.raises(ValueError, match="from 0"):
        made.at(-0.1)


def test_ablations() -> None:
    strong = Regularisation(15.0, 0.0, 0.0, 0.3)
    assert {s.regularisation for s in preset("s", adaptive=False).stages} == {strong}
    assert [s.size for s in preset("s", stages=8, min_size=256).stages][::7] == [256, 300]
    assert [s.size for s in preset("s", multiple=32).stages] == [128, 192, 256, 288]
    assert preset("s", stages=1).stages == (Stage(350.0, 300, strong),)


def test_the_last_stage_can_be_chosen() -> None:
    made = preset("m", magnitude=3.0, dropout=0.8, cutmix=0.4)
    assert made.stages[0].regularisation == Regularisation(3.0, 0.0, 0.0, 0.1)
    assert made.stages[-1].regularisation == Regularisation(3.0, 0.2, 0.4, 0.8)
    assert preset("b0", magnitude=4.0).policy == "randaugment"


def test_random_resize() -> None:
    made = preset("s", epochs=100, random_resize=8, seed=3)
    assert [s.epochs for s in made.stages] == [8] * 12 + [4]
    sizes = [s.size for s in made.stages]
    assert len(set(sizes)) > 8 and min(sizes) >= 128 and max(sizes) <= 300
    for stage in made.stages:  # regularisation is as strong as the image is large
        part = (stage.size - 128) / (300 - 128)
        assert stage.regularisation.magnitude == pytest.approx(5 + 10 * part, abs=0.1)
    assert made == preset("s", epochs=100, random_resize=8, seed=3)
    assert made != preset("s", epochs=100, random_resize=8, seed=4)


def test_larger_batches() -> None:
    made = preset("s").with_larger_batches()
    assert [s.batch for s in made.stages] == pytest.approx(
        [(300 / s.size) ** 2 for s in made.stages]
    )
    assert made.with_larger_batches(2.0).stages[0].batch == 2.0
    shuffled = preset("s", random_resize=50, seed=1).with_larger_batches()
    assert min(s.batch for s in shuffled.stages) == 1.0
    pixels = [s.size**2 * s.batch for s in shuffled.stages]
    assert max(pixels) == pytest.approx(min(pixels))


def test_saved(tmp_path) -> None:
    made = preset("m", "official").with_larger_batches(4.0)
    made.save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == made


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "a", "stages": []}', '{"stages": [1]}'])
def test_not_a_schedule(tmp_path, text) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(RecipeError, match="s.json"):
        Schedule.load(tmp_path / "s.json")


def test_missing_file(tmp_path) -> None:
    with pytest.raises(RecipeError, match="gone.json"):
        Schedule.load(tmp_path / "gone.json")


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"stages": 0}, "stages"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": math.nan}, "epochs"),
        ({"min_size": 301, "max_size": 300}, "shrink"),
        ({"min_size": 16}, "16"),
        ({"random_resize": -1}, "random_resize"),
    ],
)
def test_refused(settings, word) -> None:
    with pytest.raises(RecipeError, match=word):
        preset("s", **settings)


def test_unknown_network() -> None:
    with pytest.raises(RecipeError, match="efficientnet_b0"):
        preset("efficientnet_b0")


def test_table() -> None:
    text = str(preset("m"))
    assert len(text.splitlines()) == 6 and "RandAugment" in text and "0.0667" in text
    assert "x1" in str(fixed("one", 64, Regularisation(), 3.0))
    assert progressive("p", (32, 64), (Regularisation(),) * 2, 4.0).stages[-1].size == 64
