"""Weights are read at every forward and at every replay, whoever wrote them; what prepares them for
the kernels does what PyTorch's own conversion does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import effv2_kernels as ek
import python_ref
from effv2_kernels.engines import native as cuda
from tests.support import randomise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def by_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.02)


def by_a_fused_optimizer(model: nn.Module) -> None:
    """With frozen norms, so that nothing counts a training forward."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * parameter.abs()
    optimizer.step()
    optimizer.zero_grad()


def to_the_statistics(model: nn.Module) -> None:
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_var.data.mul_(1.1)
        norm.running_mean.data.add_(0.01)


@pytest.mark.parametrize("runs", ["model", "capture"])
@pytest.mark.parametrize("write", [by_data, by_a_fused_optimizer, to_the_statistics])
@pytest.mark.parametrize("layout", FORMATS)
def test_a_write_is_seen(layout: str, write: Callable[[nn.Module], None], runs: str) -> None:
    model = randomise(python_ref.create("b0", num_classes=10)).eval().cuda()
    model.to(memory_format=FORMATS[layout])
    plain = copy.deepcopy(model)
    ek.patch(model)
    x = torch.randn(4, 3, 64, 64, device="cuda")
    # Around the capture too: the kernels of a graph are chosen there.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        run = ek.capture(model, x) if runs == "capture" else model
        stale = run(x).clone()
        write(model)
        plain.load_state_dict(model.state_dict())
        fresh = plain(x)
        found = run(x)
    assert (found - fresh).norm() < 0.01 * (stale - fresh).norm()


@pytest.mark.parametrize("to", cuda.DTYPES, ids=str)
def test_convert(to: torch.dtype) -> None:
    """More tensors than one launch takes, of all dtypes and layouts, sizes that fill no vector."""
    shapes = [
        (7, 5, 3, 3),
        (96, 24, 3, 3),
        (33,),
        (1, 1, 1, 1),
        (130, 67, 1, 1),
        (8, 1, 5, 5),
        (0,),
    ]
    made = [
        torch.randn(shape, device="cuda").to(dtype)
        for _ in range(12)
        for shape in shapes
        for dtype in cuda.DTYPES
    ]
    given = [
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 and i % 2 else t
        for i, t in enumerate(made)
    ]
    found = cuda.convert(given, to)
    if found is NotImplemented:
        pytest.skip("the native library is not loaded")
    for ours, source in zip(found, given, strict=True):
        assert torch.equal(ours, source.to(to))
        assert is_laid_out(ours)


def is_laid_out(tensor: Tensor) -> bool:
    last = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return tensor.is_contiguous(memory_format=last)
