"""The real csrc/convert.cu on the CPU against PyTorch's conversion, to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from effv2_kernels.engines import native as cuda
from tests.cuda_host.native import Native
from tests.cuda_host.runner import DTYPES

# Less than a vector, not whole vectors, more than a block takes; nothing.
SHAPES = [
    *((), (1,), (17,), (8192,), (8195,), (3, 5), (2, 3, 4), (0,)),
    *((24, 3, 3, 3), (5, 7, 3, 3), (20, 64, 3, 3), (3, 30, 5, 5), (2, 3, 1, 7), (0, 3, 3, 3)),
    *((64, 1, 5, 5), (40, 30, 1, 1), (70, 130, 1, 1), (1, 9, 1, 1)),
]


@pytest.fixture(autouse=True)
def loaded(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LOADED", True)
    monkeypatch.setattr(cuda, "_on_one_gpu", lambda tensors: True)


def check(native: Native, sources: Sequence[Tensor], dtype: torch.dtype, launches: int = 1) -> None:
    found = cuda.convert(sources, dtype)
    assert found is not NotImplemented
    for source, target in zip(sources, found, strict=True):
        assert target.dtype == dtype and torch.equal(target, source.to(dtype))
    assert native.answers == [launches]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_shapes(native: Native, source: torch.dtype, dtype: torch.dtype) -> None:
    sources = [torch.randn(shape).to(source) for shape in SHAPES]
    maps = [s.contiguous(memory_format=torch.channels_last) for s in sources if s.dim() == 4]
    check(native, [*sources, *maps], dtype)


def test_sources_of_several_dtypes_share_a_launch(native: Native) -> None:
    check(native, [torch.randn(9, 5, 3, 3).to(source) for source in DTYPES], torch.bfloat16)


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_unaligned_sources(native: Native, offset: int) -> None:
    native.offset = offset
    check(native, [torch.randn(shape) for shape in SHAPES], torch.float16)


@pytest.mark.parametrize(("count", "launches"), [(1, 1), (112, 1), (113, 2), (225, 3)])
def test_many(native: Native, count: int, launches: int) -> None:
    """As many a launch as its parameters hold; empty ones take no room."""
    sources = [torch.randn(3 + i % 5, 4 + i % 3, 1 + i % 2, 1 + i % 2) for i in range(count)]
    check(native, [torch.empty(0), *sources, torch.empty(0)], torch.bfloat16, launches)


def test_only_empty_ones(native: Native) -> None:
    check(native, [torch.empty(0), torch.empty(0, 4, 1, 1)], torch.bfloat16, launches=0)
    assert cuda.convert([], torch.bfloat16) == []


@pytest.mark.parametrize(
    "source",
    [torch.ones(3).double(), torch.ones(4, 4)[:, ::2], torch.ones(4, 3, 3, 3).transpose(2, 3)],
    ids=["float64", "sliced", "transposed"],
)
def test_what_is_declined(source: Tensor) -> None:
    assert cuda.convert([torch.ones(3), source], torch.bfloat16) is NotImplemented
    assert cuda.convert([torch.ones(3)], torch.float64) is NotImplemented
