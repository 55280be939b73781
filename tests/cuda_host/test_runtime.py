"""The host runtime itself: right kernels are right, and planted bugs are found."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_host.runner import HERE, Driver, HostError, driver

THREADS, BLOCKS = 96, 3
# The cases of drivers/planted.cpp and what is said of them; None: NaN in the result.
BUGS = {
    "read past the end": (1, "heap-buffer-overflow"),
    "write past the end": (2, "heap-buffer-overflow"),
    "read before the start": (3, "heap-buffer-overflow"),
    "past the dynamic shared memory": (4, "heap-buffer-overflow"),
    "misaligned vector": (5, "misaligned address"),
    "missing barrier": (6, "a race: other results in another order"),
    "two blocks write one element": (7, "a race: other results in another order"),
    "a barrier that one warp does not reach": (8, "a barrier that not all threads"),
    "a thread that ended before the barrier": (9, "a barrier that not all threads"),
    "a warp instruction for half a warp": (10, "a warp instruction that not all lanes"),
    "shared memory that nobody wrote": (11, None),
    "static shared memory that nobody wrote": (12, None),
    "a copy that nobody awaited": (13, None),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return driver(tmp_path_factory, HERE / "drivers" / "planted.cpp")


def sums(planted: Driver, which: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the kernel wrote, what it should have): each thread's sum of its block's inputs."""
    values = torch.randint(-1000, 1000, (BLOCKS, THREADS)).float()
    out = torch.full_like(values, torch.nan)
    (_, found), _ = planted([which], [values, out])
    return found, values.sum(1, keepdim=True).expand_as(values)


def test_a_right_kernel(planted: Driver) -> None:
    found, right = sums(planted, 0)
    assert torch.equal(found, right)


@pytest.mark.parametrize("bug", BUGS)
def test_finds(planted: Driver, bug: str) -> None:
    which, message = BUGS[bug]
    if message is None:
        assert sums(planted, which)[0].isnan().any()
        return
    with pytest.raises(HostError, match=message):
        sums(planted, which)


def test_warp_instructions(planted: Driver) -> None:
    (out,), _ = planted([100], [torch.zeros(64 * 6 + 1, dtype=torch.int32)])
    assert out[-1] == 64
    lanes = range(32)
    votes = sum(1 << lane for lane in lanes if lane % 3 == 0)
    right = [
        (
            9,
            lane ^ 1,
            lane + 4 if lane % 8 < 4 else lane,
            lane - 4 if lane % 8 >= 4 else lane,
            votes,
            2 * (lane > 1) + (lane in (4, 5)),
        )
        for lane in lanes
    ]
    assert (out[:-1].view(2, 32, 6) == torch.tensor(right, dtype=torch.int32)).all()


def test_matrix_product(planted: Driver) -> None:
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(8, 16).bfloat16()
    (_, _, d), _ = planted([101], [a, b, torch.full((16, 8), torch.nan)])
    assert torch.allclose(d.double(), a.double() @ b.double().T, atol=1e-5)
