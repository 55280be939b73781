"""The rule that results are judged by, itself: what it lets pass and what not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

import python_ref
from tests.gpu import checks
from tests.ops.cases import LAYOUTS, OPS, arguments
from tests.support import (
    Draw,
    assert_as_close_as_pytorch,
    assert_as_close_over,
    randomise,
    redrawn,
    relative_error,
)

RIGHT = torch.linspace(-1, 1, 101, dtype=torch.float64)
PYTORCHS = 1e-3


def off_by(*errors: Sequence[float], taken: list[int] | None = None) -> Iterator[Draw]:
    """Draws in each of which our calls are off by so much, and PyTorch by ``PYTORCHS``."""
    for number, calls in enumerate(errors):
        if taken is not None:
            taken.append(number)
        yield [(1 + error) * RIGHT for error in calls], (1 + PYTORCHS) * RIGHT, RIGHT


def test_one_result() -> None:
    assert_as_close_as_pytorch(1.0019 * RIGHT, 1.001 * RIGHT, RIGHT)
    for wrong in (1.0021 * RIGHT, torch.nan * RIGHT):
        with pytest.raises(AssertionError, match="PyTorch's 1.00e-03"):
            assert_as_close_as_pytorch(wrong, 1.001 * RIGHT, RIGHT)


def test_a_draw_far_below_the_limit_decides() -> None:
    taken: list[int] = []
    assert_as_close_over(off_by([1.1e-3, 1.1e-3], [1.0, 1.0], taken=taken))
    assert taken == [0]


def test_all_others_are_pooled() -> None:
    """Below the limit or above it: a lucky draw decides as little as an unlucky one."""
    taken: list[int] = []
    assert_as_close_over(off_by([2.3e-3], [1.9e-3], [1.5e-3], [1.5e-3], taken=taken))
    assert taken == [0, 1, 2, 3]
    for unlucky in ([1.9e-3], [2.3e-3], [1.5e-3], [2.5e-3]), ([3e-3], [1e-3], [3e-3], [1e-3]):
        with pytest.raises(AssertionError, match="errors"):
            assert_as_close_over(off_by(*unlucky))


@pytest.mark.parametrize(
    "errors",
    [
        [[2.3e-3]] * 4,
        [[1.0], [1e-3], [1e-3], [1e-3]],  # wrong once, and by much
        [[1e-3, 2.3e-3]] * 4,  # the second call only
        [[torch.nan], [1.9e-3]],
        [],
    ],
    ids=["always", "once", "one call", "nan", "nothing"],
)
def test_what_fails(errors: list[list[float]]) -> None:
    with pytest.raises(AssertionError, match="errors|no draw"):
        assert_as_close_over(off_by(*errors))


@torch.no_grad()
def test_another_draw_is_another_network() -> None:
    first = randomise(python_ref.create("b0", num_classes=100)).eval()
    second, x = redrawn(first, 1, 64), torch.randn(2, 3, 64, 64)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert not torch.equal(a, b) or name.endswith("bias"), name
    assert relative_error(second(x), first(x)) > 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_what_gpu_tests_put_on_the_device_is_the_same_there(op: str, layout: str) -> None:
    """Values and strides, those of a slice too."""
    here = arguments(op, layout=layout, extra=True)
    there = checks.on_device(here, "cpu")
    tensors = [name for name, value in here.items() if isinstance(value, torch.Tensor)]
    assert tensors
    for name in tensors:
        assert torch.equal(there[name], here[name]) and there[name].stride() == here[name].stride()
        assert there[name].data_ptr() != here[name].data_ptr()
