"""The rule that results are judged by, itself: what it lets pass and what not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support import Draw, assert_as_close_as_pytorch, assert_as_close_over

RIGHT = torch.linspace(-1, 1, 101, dtype=torch.float64)


def off_by(*errors: tuple[float, float], taken: list[int] | None = None) -> Iterator[Draw]:
    """Draws in which we are off by the first of a pair, PyTorch by the second."""
    for number, (ours, theirs) in enumerate(errors):
        if taken is not None:
            taken.append(number)
        yield (1 + ours) * RIGHT, (1 + theirs) * RIGHT, RIGHT


def test_one_result() -> None:
    assert_as_close_as_pytorch(1.0019 * RIGHT, 1.001 * RIGHT, RIGHT)
    for wrong in (1.0021 * RIGHT, torch.nan * RIGHT):
        with pytest.raises(AssertionError, match="PyTorch's 1.00e-03"):
            assert_as_close_as_pytorch(wrong, 1.001 * RIGHT, RIGHT)


def test_as_few_draws_are_taken_as_pass() -> None:
    taken: list[int] = []
    assert_as_close_over(off_by((1e-3, 1e-3), (1.0, 1e-3), taken=taken))
    assert taken == [0]


def test_an_unlucky_draw_is_no_verdict() -> None:
    assert_as_close_over(off_by((2.3e-3, 1e-3), (1e-3, 1e-3)))


@pytest.mark.parametrize(
    "errors",
    [
        [(2.3e-3, 1e-3)] * 4,
        [(1.0, 1e-3), (0.0, 1e-3), (0.0, 1e-3), (0.0, 1e-3)],  # wrong once, and by much
        [(torch.nan, 1e-3), (1e-3, 1e-3)],
        [],
    ],
    ids=["always", "once", "nan", "nothing"],
)
def test_what_all_draws_together_fail(errors: list[tuple[float, float]]) -> None:
    with pytest.raises(AssertionError, match="errors"):
        assert_as_close_over(off_by(*errors))
