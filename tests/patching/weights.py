"""What the tests of fresh weights share: a warm model, a change, what must come out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

import effv2_kernels as ek
from effv2_kernels.running.inference import BlockRunner
from tests.support import in_float64, relative_error


@torch.no_grad()
def assert_fresh(model: nn.Module, image: torch.Tensor, stale: torch.Tensor | None) -> None:
    """The patched model gives what the same model unpatched gives: far nearer to that than its
    stale output is. (How near exactly is what the tests of the contract measure; some changes here
    leave a network that amplifies rounding.)"""
    assert ek.is_patched(model)
    found = model(image)
    plain = copy.deepcopy(model)
    ek.unpatch(plain)
    reference = in_float64(plain, image)
    if stale is None:
        assert relative_error(found, reference) <= 1e-4
    else:
        assert relative_error(found, reference) <= 0.01 * relative_error(stale, reference)


@torch.no_grad()
def warm(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Patch and run until everything that is cached is cached."""
    ek.patch(model)
    model(image)
    model(image)
    return model(image)


def a_conv(model: nn.Module) -> nn.Conv2d:
    """A convolution deep in the network, whose weight is folded."""
    return [m for m in convs(model) if m.kernel_size == (3, 3)][-1]


def convs(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def folded_convs(model: nn.Module) -> list[nn.Conv2d]:
    """Those that a norm follows; the others are those of squeeze-and-excite."""
    return [conv for conv in convs(model) if conv.bias is None]


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def a_norm(model: nn.Module) -> nn.BatchNorm2d:
    return norms(model)[-2]


def runners(model: nn.Module) -> Iterator[BlockRunner]:
    """Of all blocks and ends in a patched model."""
    for module in model.modules():
        own = getattr(module.__dict__.get("forward"), "runner", None)
        if isinstance(own, BlockRunner):
            yield own
        elif own is not None:
            yield from (end for end in (own.stem, own.head) if end is not None)


def no_grad(change: Callable[[nn.Module], object]) -> Callable[[nn.Module], None]:
    def run(model: nn.Module) -> None:
        with torch.no_grad():
            change(model)

    return run


def fused_step(
    model: nn.Module, image: torch.Tensor, kind: type[torch.optim.Optimizer], lr: float
) -> None:
    """A step of fine-tuning with frozen statistics. A fused optimizer moves no version counter."""
    model.train()
    for norm in norms(model):
        norm.eval()
    optimizer = kind(model.parameters(), lr=lr, fused=True)
    model(image).flatten(1).log_softmax(1)[:, 0].mean().neg().backward()
    versions = [p._version for p in model.parameters()]
    optimizer.step()
    assert [p._version for p in model.parameters()] == versions
    optimizer.zero_grad()
    model.eval()
