"""The compiled passes of training against aten.py in float64, by the measure of CONTRIBUTING.md."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from effv2_kernels.activations import ACTS
from effv2_kernels.engines import passes
from effv2_kernels.engines.passes import aten, native
from tests.support import TINY, assert_as_close_as_pytorch

WHY_NOT = passes.why_not_compiled()
needs_library = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
CHANNELS = (1, 3, 24, 33, 96)
SIZES = [(n, *image) for n in (1, 5) for image in ((1, 1), (7, 5), (20, 20))]
EPS = 1e-3


@dataclass
class Case:
    """Inputs of every pass, drawn anew: maps (N, C, H, W), in one dtype."""

    channels: int
    size: tuple[int, int, int]
    dtype: torch.dtype
    act: str

    def __post_init__(self) -> None:
        torch.manual_seed(zlib.crc32(f"{self.channels} {self.size} {self.act}".encode()))
        n, c, wide = self.size[0], self.channels, torch.promote_types(self.dtype, torch.float32)
        self.y = 2 * self.map() + 0.5
        self.grad, self.residual = self.map(), self.map()
        self.gamma, self.beta = torch.rand(c) + 0.5, torch.randn(c)
        self.gate = torch.rand(n, c).to(self.dtype)
        self.mask = torch.where(torch.rand(n) < 0.3, 0.0, 1.25).to(self.dtype)
        self.dmean = torch.randn(n, c, dtype=wide)
        # A single pixel has no variance, by which everything behind it would be a constant.
        mean, variance = torch.full((c,), 0.4), torch.rand(c) * 4 + 1
        self.coefficients = aten.coefficients(
            *(self.y, self.gamma, self.beta, mean, variance, EPS)
        )

    def map(self) -> Tensor:
        n, *image = self.size
        values = torch.randn(n, self.channels, *image).to(self.dtype)
        return values.contiguous(memory_format=torch.channels_last)

    @property
    def normed(self) -> tuple[Tensor, Tensor, str]:
        return self.y, self.coefficients, self.act


def cases() -> list[Any]:
    shapes = itertools.product(CHANNELS, SIZES)
    return [pytest.param(c, size, id=f"{c}-{'x'.join(map(str, size))}") for c, size in shapes]


every_shape = pytest.mark.parametrize(("channels", "size"), cases())
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
every_act = pytest.mark.parametrize("act", ACTS)


def doubled(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.double()
    return [doubled(v) for v in values] if isinstance(values, list | tuple) else values


def check(name: str, *arguments: Any) -> None:
    """The pass of that name, on the same inputs natively, by PyTorch, and by PyTorch in float64."""
    with unchanged(arguments):
        found = getattr(native, name)(*arguments)
    eager = getattr(aten, name)(*arguments)
    assert (found.shape, found.dtype) == (eager.shape, eager.dtype)
    close(found, eager, getattr(aten, name)(*doubled(arguments)))


Backward = Callable[[ModuleType, list[Any], Tensor | None], Tensor]


def check_backward(call: Backward, case: Case, *rest: Any) -> None:
    """call(module, [grad, *rest], out), with dy in no map, in one of its own, and in the gradient's.
    A single value is one throw of dice, so the sums are judged as one."""
    arguments = [case.grad, *rest]
    eager, reference = torch.empty_like(case.grad), torch.empty_like(case.grad).double()
    of_eager = call(aten, arguments, eager)
    of_reference = call(aten, doubled(arguments), reference)
    own, same = torch.full_like(case.grad, float("nan")), case.grad.clone()
    for grad, out in ((case.grad, None), (case.grad, own), (same, same)):
        with unchanged([case.grad, *rest]):
            found = call(native, [grad, *rest], out)
        assert found.dtype == case.coefficients.dtype
        close(found, of_eager, of_reference)
        if out is not None:
            close(out, eager, reference)


@contextmanager
def unchanged(arguments: Sequence[Any]) -> Iterator[None]:
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    before = [tensor.clone() for tensor in tensors]
    yield
    assert all(map(torch.equal, tensors, before)), "an input was changed"


def close(found: Tensor, eager: Tensor, reference: Tensor) -> None:
    if reference.norm() == 0:  # a relative error says nothing: a batch of one pixel has dy = 0
        assert found.norm() <= TINY * found.numel() ** 0.5
    else:
        assert_as_close_as_pytorch(found, eager, reference)


@needs_library
@every_dtype
@every_shape
def test_coefficients(channels: int, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = Case(channels, size, dtype, "none")
    given = torch.randn(channels).to(dtype), torch.rand(channels).to(dtype)
    for affine in ((None, None), (case.gamma, case.beta), (case.gamma.to(dtype), None)):
        for statistics in ((None, None), given):
            arguments = case.y, *affine, *statistics, EPS
            found, eager = native.coefficients(*arguments), aten.coefficients(*arguments)
            assert (found.shape, found.dtype) == (eager.shape, eager.dtype)
            reference = aten.coefficients(*doubled(arguments))
            for rows in zip(found, eager, reference, strict=True):
                close(*rows)


@needs_library
@every_act
@every_dtype
@every_shape
def test_forward(channels: int, size: tuple[int, int, int], dtype: torch.dtype, act: str) -> None:
    case = Case(channels, size, dtype, act)
    for gate in (None, case.gate):
        check("bn_act", *case.normed, gate, None, None)
    for residual in (None, case.residual):
        check("bn_act", *case.normed, None, case.mask, residual)
    check("bn_act", *case.normed, case.gate, case.mask, case.residual)
    check("act_mean", *case.normed)


@needs_library
@every_act
@every_dtype
@every_shape
def test_backward(channels: int, size: tuple[int, int, int], dtype: torch.dtype, act: str) -> None:
    case = Case(channels, size, dtype, act)
    for batch in (False, True):
        for mask in (None, case.mask):

            def call(module: ModuleType, inputs: list[Any], out: Tensor | None) -> Tensor:
                grad, y, coefficients, gamma, mask = inputs
                of_norm = coefficients, gamma, act, mask, batch  # noqa: B023
                return module.bn_act_backward(grad, y, *of_norm, out)

            check_backward(call, case, case.y, case.coefficients, case.gamma, mask)


@needs_library
@every_act
@every_dtype
@every_shape
def test_gated(channels: int, size: tuple[int, int, int], dtype: torch.dtype, act: str) -> None:
    case = Case(channels, size, dtype, act)
    check("gated_sums", case.grad, *case.normed)
    for batch in (False, True):

        def call(module: ModuleType, inputs: list[Any], out: Tensor | None) -> Tensor:
            grad, y, coefficients, gamma, gate, dmean = inputs
            of_norm = coefficients, gamma, act
            sums = module.gated_sums(grad, y, coefficients, act)
            rest = sums, gate, dmean, batch, out  # noqa: B023
            return module.gated_backward(grad, y, *of_norm, *rest)

        check_backward(
            call, case, case.y, case.coefficients, case.gamma, case.gate, case.dmean
        )
