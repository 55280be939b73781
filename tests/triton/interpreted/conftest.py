"""Small tiles, and guards around every output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from effv2_kernels.engines.triton import _arguments, conv, depthwise, fused_mbconv, pool

_GUARD, _MARK = 64, 1234.5
_CHOOSERS = {"conv": conv, "fused_mbconv": fused_mbconv, "pool": pool, "depthwise": depthwise}


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``tiles("conv", choice)``: from now on that launch, whatever the shape."""

    def choose_always(module: str, choice: Any) -> None:
        monkeypatch.setattr(_CHOOSERS[module], "choose", lambda *args: choice)

    return choose_always


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Whatever the ops allocate is full of NaN and lies between marks, which are whole at the
    end."""
    buffers: list[Tensor] = []

    def empty(x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        count = torch.Size(shape).numel()
        buffer = torch.full((count + 2 * _GUARD,), _MARK, dtype=dtype or x.dtype)
        buffers.append(buffer)
        return buffer[_GUARD : _GUARD + count].fill_(torch.nan).view(shape)

    monkeypatch.setattr(_arguments, "empty", empty)
    yield buffers
    mark = {dtype: torch.tensor(_MARK, dtype=dtype) for dtype in {b.dtype for b in buffers}}
    for buffer in buffers:
        ends = torch.cat([buffer[:_GUARD], buffer[buffer.numel() - _GUARD :]])
        assert (ends == mark[buffer.dtype]).all(), "written outside of an output"
