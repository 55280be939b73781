"""The stream of images: every image once an epoch, for any processes, from any step on."""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice

import pytest

from python_ref.recipe import RecipeError, Regularisation, Schedule, Stage
from python_ref.recipe.draws import Stream, seed_of

NONE = Regularisation()


def stream(*epochs: float, images: int = 23, batch: int = 4, growth: float = 1.0, **settings):
    stages = tuple(Stage(e, 32, NONE, growth if i == 0 else 1.0) for i, e in enumerate(epochs))
    return Stream(Schedule("s", stages), images, batch, 7, **settings)


def indices(batches) -> list[int]:
    return [draw.index for draw in chain.from_iterable(batches)]


def test_every_image_once_an_epoch() -> None:
    found = indices(stream(3.0, images=24).draws(0))
    assert len(found) == 72
    for epoch in range(3):
        assert sorted(found[24 * epoch : 24 * epoch + 24]) == list(range(24))
    assert found[:24] != found[24:48]


def test_seeds_are_of_the_position() -> None:
    draws = list(chain.from_iterable(stream(3.0).draws(0)))
    assert len({d.seed for d in draws}) == len(draws)
    other = list(chain.from_iterable(stream(3.0, batch=8).draws(0)))
    assert [(d.index, d.seed) for d in draws[:69]] == [(d.index, d.seed) for d in other[:69]]


@pytest.mark.parametrize("world, accumulate", [(1, 1), (1, 4), (2, 1), (2, 2), (4, 1)])
def test_processes_share_a_step(world: int, accumulate: int) -> None:
    """Together they take what one process alone takes."""
    alone = list(stream(2.0, batch=8).draws(0))
    shared = [
        list(stream(2.0, batch=8, world=world, accumulate=accumulate).draws(rank))
        for rank in range(world)
    ]
    for number, whole in enumerate(alone):
        parts = [r[number * accumulate : (number + 1) * accumulate] for r in shared]
        assert Counter(indices([whole])) == Counter(indices(chain.from_iterable(parts)))
        assert {len(part) for part in chain.from_iterable(parts)} == {8 // world // accumulate}


def test_goes_on_from_anywhere() -> None:
    whole = stream(1.5, 2.0, growth=3.0, accumulate=2)
    steps, draws = list(whole.steps()), list(whole.draws(0))
    for step in steps:
        again = stream(1.5, 2.0, growth=3.0, accumulate=2)
        assert list(again.steps(step.number, step.position)) == steps[step.number :]
        rest = again.draws(0, step.number, step.position)
        assert list(islice(rest, 4)) == draws[2 * step.number :][:4]


def test_steps_and_stages() -> None:
    whole = stream(1.0, 2.0, images=24, growth=2.5)
    steps = list(whole.steps())
    assert whole.total_steps() == len(steps)
    assert [s.images for s in steps] == [10] * 3 + [4] * 11  # 24 images in tens, the rest in fours
    assert [s.stage for s in steps] == [0] * 3 + [1] * 11
    assert all(one.end == two.position for one, two in zip(steps, steps[1:], strict=False))
    assert {d.stage for d in next(whole.draws(0))} == {0}
    assert whole.epoch(36) == 1.5


@pytest.mark.parametrize("epochs", [0.3, 1.0, 2.7])
def test_all_epochs_are_done(epochs: float) -> None:
    *_, last = stream(epochs).steps()
    assert last.position < epochs * 23 <= last.end + 1e-6


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(RecipeError, match="--batch 4 .* multiple of 3"):
        stream(1.0, world=3)


def test_seeds_differ() -> None:
    found = {seed_of(seed, "image", p) for seed in range(10) for p in range(1000)}
    assert len(found) > 9990 and all(0 <= s < 2**32 for s in found)
    assert seed_of(1, "a") == seed_of(1, "a") != seed_of(1, "b")
