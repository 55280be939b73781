"""The compiled passes of training against aten.py in float64, by the measure of CONTRIBUTING.md."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from effv2_kernels import _native
from effv2_kernels.activations import ACTS, FUNCTIONS
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
        self.coefficients = aten.coefficients(*(self.y, self.gamma, self.beta, mean, variance, EPS))

    def map(self) -> Tensor:
        n, *image = self.size
        values = torch.randn(n, self.channels, *image).to(self.dtype)
        return values.contiguous(memory_format=torch.channels_last)

    @property
    def normed(self) -> tuple[Tensor, Tensor, str]:
        return self.y, self.coefficients, self.act


def cases() -> list[Any]:
    shapes = [*itertools.product(CHANNELS, SIZES), (1100, (3, 7, 5))]  # more than a cache's tile
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
    """call(module, [grad, *rest], out), with dy in no map, one of its own, and the gradient's. A
    single value is one throw of dice, so the sums are judged as one."""
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

        check_backward(call, case, case.y, case.coefficients, case.gamma, case.gate, case.dmean)


@needs_library
@every_dtype
def test_the_variance_about_a_large_mean(dtype: torch.dtype) -> None:
    y = Case(24, (5, 20, 20), torch.float32, "none").map()
    y = (y + 1e3).to(dtype)
    found = native.coefficients(y, None, None, None, None, EPS)
    variance, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    assert relative(found[0], mean) < 1e-6 and relative(found[1], variance) < 1e-6


def relative(found: Tensor, reference: Tensor) -> float:
    return ((found.double() - reference) / reference).abs().max().item()


def over_line(values: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """(act, its derivative) of many values, as the passes compute them: z = y, a gradient of 1."""
    y = values.view(1, 1, 1, -1).contiguous(memory_format=torch.channels_last)
    wide = torch.promote_types(y.dtype, torch.float32)
    coefficients = torch.tensor([[0.0], [1.0], [1.0], [1.0], [0.0]], dtype=wide)
    slope = torch.ones_like(y)
    native.bn_act_backward(slope, y, coefficients, None, act, None, False, slope)
    return native.bn_act(y, coefficients, act).flatten(), slope.flatten()


def exact(values: Tensor, act: str) -> tuple[Tensor, Tensor]:
    z = values.double()
    return FUNCTIONS[act](z), aten.BACKWARDS[act](torch.ones_like(z), z)


@needs_library
def test_every_value_of_silu_is_accurate() -> None:
    """Each by itself, not in the norm: four units in the last place; the slope, which changes its
    sign, of what it is the difference of."""
    values = torch.linspace(-87, 30, 200_001)
    (value, slope), (right, right_slope) = over_line(values, "silu"), exact(values, "silu")
    assert bool(((value - right).abs() <= 2**-21 * right.abs()).all())
    terms = right_slope.abs() + torch.sigmoid(values.double())
    assert bool(((slope - right_slope).abs() <= 2**-20 * terms).all())


@needs_library
def test_every_value_of_gelu_is_accurate() -> None:
    """As PyTorch's is: of 1 + erf, not of the small difference that it is far below zero."""
    values = torch.linspace(-30, 30, 200_001)
    limit = 2**-21 * values.abs().clamp_min(1)
    for found, right in zip(over_line(values, "gelu"), exact(values, "gelu"), strict=True):
        assert bool(((found - right).abs() <= limit).all())


@needs_library
@every_act
@every_dtype
def test_extremes(act: str, dtype: torch.dtype) -> None:
    infinity, nan = float("inf"), float("nan")
    extremes = [*(0.0, -0.0, 3.0, -3.0, 6.0, 88.5, -88.5, 100.0, -100.0, 1e4, -1e4), 3e38, -3e38]
    values = torch.tensor([*extremes, infinity, -infinity, nan] * 9).to(dtype)
    for found, reference in zip(over_line(values, act), exact(values, act), strict=True):
        # Of NaN's derivative PyTorch's vector code gives another than its scalar code.
        sure = ~values.isnan()
        torch.testing.assert_close(
            found[sure], reference.to(dtype)[sure], equal_nan=True, rtol=1e-2, atol=1e-36
        )


@needs_library
@every_act
@every_dtype
def test_a_nan_stays_one(act: str, dtype: torch.dtype) -> None:
    value, _ = over_line(torch.tensor([1.0] * 40 + [float("nan")]).to(dtype), act)
    assert value[40].isnan() and value[:40].isfinite().all()


@needs_library
@every_dtype
def test_sums_are_rounded_as_pytorch_rounds(dtype: torch.dtype) -> None:
    """Sums of two bfloat16 numbers fall between their like, ties included."""
    case = Case(33, (5, 20, 20), dtype, "none")
    identity = torch.zeros_like(case.coefficients)
    identity[3] = 1
    found = native.bn_act(case.y, identity, "none", None, None, case.residual)
    assert torch.equal(found, case.y + case.residual)


def everything(case: Case) -> list[Tensor]:
    rest = case.gamma, case.act
    out, gated_out = torch.empty_like(case.grad), torch.empty_like(case.grad)
    sums = native.gated_sums(case.grad, *case.normed)
    last = sums, case.gate, case.dmean, True, gated_out
    return [
        native.coefficients(case.y, case.gamma, case.beta, None, None, EPS),
        native.bn_act(*case.normed, case.gate, case.mask, case.residual),
        native.act_mean(*case.normed),
        native.bn_act_backward(case.grad, case.y, case.coefficients, *rest, case.mask, True, out),
        native.gated_backward(case.grad, case.y, case.coefficients, *rest, *last),
        *(out, sums, gated_out),
    ]


@needs_library
@every_dtype
@pytest.mark.parametrize("channels", [3, 96, 1100])
def test_the_same_bits_from_any_number_of_threads(channels: int, dtype: torch.dtype) -> None:
    case = Case(channels, (5, 20, 20), dtype, "silu")
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 1, 2, 3):
            torch.set_num_threads(number)
            results.append(everything(case))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@needs_library
def test_maps_without_a_pixel() -> None:
    case = Case(24, (0, 7, 5), torch.float32, "silu")
    value, pooled = native.bn_act(*case.normed), native.act_mean(*case.normed)
    assert value.shape == (0, 24, 7, 5) and pooled.shape == (0, 24)
    sums = native.bn_act_backward(
        case.grad, case.y, case.coefficients, None, "silu", None, True, case.grad
    )
    assert torch.equal(sums, torch.zeros(2, 24))


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "y of rank 3": ("bn_act", {"y": torch.ones(24, 7, 5)}, r"y must be \(N, C, H, W\), found"),
    "y contiguous": ("act_mean", {"y": torch.ones(5, 24, 7, 5)}, "y must be dense channels_last"),
    "y of float16": (
        "bn_act",
        {"y": torch.ones(5, 24, 1, 1).half()},
        "y must be float32, bfloat16 or float64, found Half",
    ),
    "short coefficients": (
        "act_mean",
        {"coefficients": torch.ones(4, 24)},
        r"coefficients must be \(5, C\) = \(5, 24\), found \(4, 24\)",
    ),
    "narrow coefficients": (
        "bn_act",
        {"coefficients": torch.ones(5, 24).bfloat16()},
        "coefficients must be Float, found BFloat16",
    ),
    "an unknown act": ("bn_act", {"act": "swish"}, 'act must be one of none, .*, found "swish"'),
    "a gate for each pixel": (
        "bn_act",
        {"gate": torch.ones(5, 24, 7, 5)},
        r"gate must be \(N, C\) = \(5, 24\)",
    ),
    "a mask of another dtype": (
        "bn_act_backward",
        {"mask": torch.ones(5).double()},
        "mask must be Float, found Double",
    ),
    "a short residual": (
        "bn_act",
        {"residual": torch.ones(4, 24, 7, 5)},
        r"residual must be \(N, C, H, W\) = \(5, 24, 7, 5\), found \(4, 24, 7, 5\)",
    ),
    "a gradient of another dtype": (
        "gated_sums",
        {"grad": torch.ones(5, 24, 7, 5).bfloat16()},
        "grad must be Float, found BFloat16",
    ),
    "a contiguous out": (
        "bn_act_backward",
        {"out": torch.ones(5, 24, 7, 5)},
        "out must be dense channels_last",
    ),
    "dmean of another dtype": (
        "gated_backward",
        {"dmean": torch.ones(5, 24).double()},
        "dmean must be Float, found Double",
    ),
    "a short gamma": (
        "coefficients",
        {"gamma": torch.ones(23)},
        r"gamma must be \(C\) = \(24\), found \(23\)",
    ),
}


def named(name: str) -> dict[str, Any]:
    """Right arguments of a pass, by the names of its function."""
    case = Case(24, (5, 7, 5), torch.float32, "silu")
    rest = {"mean": None, "variance": None, "eps": EPS, "batch": True, "out": None}
    rest["sums"] = torch.zeros(5, 5, 24)
    known = vars(case) | rest
    return {key: known[key] for key in signature(getattr(native, name)).parameters}


@needs_library
@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    name, changes, message = WRONG[case]
    getattr(native, name)(**named(name))
    with pytest.raises(RuntimeError, match=f"^effv2::{name}: {message}"):
        getattr(native, name)(**named(name) | changes)


@needs_library
@pytest.mark.parametrize("name", ["bn_act_backward", "gated_backward"])
def test_out_is_not_y(name: str) -> None:
    arguments = named(name)
    with pytest.raises(RuntimeError, match=f"^effv2::{name}: out must not be y"):
        getattr(native, name)(**arguments | {"out": arguments["y"]})


@needs_library
def test_which_passes_are_for_a_map() -> None:
    for dtype in DTYPES:
        assert passes.for_map(torch.ones(1, dtype=dtype)) is native
    assert passes.for_map(torch.ones(1).half()) is aten
    assert passes.for_map(torch.ones(1, device="meta")) is aten
    with FakeTensorMode():
        assert passes.for_map(torch.ones(1)) is aten


def test_without_a_library_aten_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = _native.NativeStatus(False, "skipped: for a test", None)
    monkeypatch.setattr(_native, "load_cpu", lambda: missing)
    assert passes.for_map(torch.ones(1)) is aten
    assert passes.why_not_compiled() == "the compiled passes are not loaded: skipped: for a test"
