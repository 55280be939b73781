"""The native convolution ops as built: what they refuse, and that CUDA tensors would reach them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from effv2_kernels import _native
from effv2_kernels.engines import native as cuda
from effv2_kernels.launch import targets
from effv2_kernels.launch.native import expand_depthwise
from tests.ops.cases import GEOMETRIES, NORMS, SMALL, Arguments, arguments, ordered, plain

STATUS = _native.load()
pytestmark = pytest.mark.skipif(not STATUS.loaded, reason=f"native library {STATUS.reason}")
KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
STEM = GEOMETRIES["3x3 stride 2"]
SIDES = [1, 1, 1, 1]
LAUNCH = {"depthwise_bias_act": [8, 16, 2, 1, 0], "expand_depthwise": [4, 4, 2, 64, 1], "stem": []}


def right(op: str, **options: Any) -> Arguments:
    """Arguments that only the device is wrong of."""
    geometry = STEM if op == "stem" else SMALL
    options |= {"layout": "channels_last", "dtype": torch.bfloat16}
    channels = (3, 24) if op == "stem" else (8, 24)
    return arguments(op, geometry, channels=channels, **options)


def native(op: str, args: Arguments, launch: list[int] | None = None) -> Any:
    """The op of ``effv2_native`` with CPU tensors: the device is what it checks last."""
    function = getattr(torch.ops.effv2_native, op).default
    extra = LAUNCH[op] if launch is None else launch
    return function.redispatch(KEYS, *ordered(op, args), *([extra] if LAUNCH[op] else []))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op", LAUNCH)
def test_the_device_is_checked_last(op: str, bias: bool, norm: str) -> None:
    with pytest.raises(RuntimeError, match=f"^effv2::{op}: x must be on a CUDA device, found cpu"):
        native(op, right(op, bias=bias, norm=norm))


WRONG = {
    "x of rank 3": ("depthwise_bias_act", {"x": torch.ones(8, 5, 6).bfloat16()}, "x must be .N, C"),
    "x contiguous": (
        "depthwise_bias_act",
        {"x": torch.ones(2, 8, 5, 6).bfloat16()},
        "x must be dense channels_last, found other strides for .2, 8, 5, 6.",
    ),
    "x of float64": ("stem", {"x": torch.ones(2, 3, 8, 8).double()}, "x must be float32, float16"),
    "two dtypes": (
        "expand_depthwise",
        {"expand_weight": torch.ones(24, 8, 1, 1)},
        "expand_weight must have the dtype of x, BFloat16, found Float",
    ),
    "a weight of 4x4": (
        "depthwise_bias_act",
        {"weight": torch.ones(8, 1, 4, 4).bfloat16()},
        "weight must be 3x3, 5x5 or 7x7, found .8, 1, 4, 4.",
    ),
    "a weight of 3x5": (
        "depthwise_bias_act",
        {"weight": torch.ones(8, 1, 3, 5).bfloat16()},
        "weight must be .C, 1, k, k. = .8, 1, 3, 3., found .8, 1, 3, 5.",
    ),
    "a sliced weight": (
        "depthwise_bias_act",
        {"weight": torch.ones(8, 1, 3, 6).bfloat16()[..., ::2]},
        "weight must be dense",
    ),
    "a short bias": (
        "stem",
        {"bias": torch.ones(23)},
        "bias must be .channels. = .24., found .23.",
    ),
    "a bias of float16": (
        "stem",
        {"bias": torch.ones(24).half()},
        "bias must be Float or BFloat16, found Half",
    ),
    "a sliced bias": (
        "stem",
        {"bias": torch.ones(48)[::2]},
        "bias must be contiguous, found strides .2.",
    ),
    "a norm of three": (
        "depthwise_bias_act",
        {"norm": [torch.ones(8)] * 3},
        "norm must be .., .mean, variance. or .mean, variance, gamma, beta., found 3 tensors",
    ),
    "a short variance": (
        "expand_depthwise",
        {"depthwise_norm": [torch.ones(24), torch.ones(1)]},
        "depthwise_norm's variance must be .channels. = .24., found .1.",
    ),
    "a sliced gamma": (
        "depthwise_bias_act",
        {"norm": [torch.ones(8), torch.ones(8), torch.ones(16)[::2], torch.ones(8)]},
        "norm's gamma must be contiguous, found strides .2.",
    ),
    "a beta of float16": (
        "expand_depthwise",
        {"expand_norm": [*[torch.ones(24).bfloat16()] * 3, torch.ones(24).half()]},
        "expand_norm's beta must be Float or BFloat16, found Half",
    ),
    "a norm of two dtypes": (
        "stem",
        {"norm": [torch.ones(24), torch.ones(24).bfloat16()]},
        "norm's variance must have the dtype of the mean, Float, found BFloat16",
    ),
    "stride 3": ("depthwise_bias_act", {"stride": [3, 3]}, "stride must be .1, 1. or .2, 2."),
    "two strides": ("expand_depthwise", {"stride": [1, 2]}, "stride must be .1, 1. or .2, 2."),
    "a stem of stride 1": ("stem", {"stride": [1, 1]}, "stride must be .2, 2."),
    "no padding": ("stem", {"padding": []}, "padding must be .top, bottom, left, right."),
    "padding of 65": ("stem", {"padding": [0, 65, 0, 0]}, "padding must be 0 to 64, found 65"),
    "act": ("depthwise_bias_act", {"act": "swish"}, 'act must be one of .*, found "swish"'),
    "odd channels": (
        "expand_depthwise",
        {"expand_weight": torch.ones(23, 8, 1, 1).bfloat16()},
        "channels must be multiples of 8, found 8 and 23",
    ),
    "four channels": ("stem", {"x": torch.ones(1, 4, 8, 8)}, "x must be .N, 3, H, W."),
    "257 channels": ("stem", {"weight": torch.ones(257, 3, 3, 3)}, "weight must have 1 to 256"),
}


@pytest.mark.parametrize("case", WRONG)
def test_contract(case: str) -> None:
    op, changes, message = WRONG[case]
    with pytest.raises(RuntimeError, match=f"^effv2::{op}: {message}"):
        native(op, right(op) | changes)


@pytest.mark.parametrize(
    ("op", "launch"),
    [
        ("depthwise_bias_act", []),
        ("depthwise_bias_act", [8, 16, 2, 1]),
        ("depthwise_bias_act", [0, 16, 2, 1, 0]),
        ("depthwise_bias_act", [8, 16, 2, -1, 0]),
        ("depthwise_bias_act", [8, 16, 2, 1, 2]),
        ("expand_depthwise", [4, 4, 2, 64]),
        ("expand_depthwise", [4, 4, 0, 64, 1]),
        ("expand_depthwise", [4, 4, 2, 64, 0]),  # by which the host would divide
    ],
)
def test_launch_choices_out_of_range(op: str, launch: list[int]) -> None:
    with pytest.raises(RuntimeError, match=f"^effv2::{op}: launch"):
        native(op, right(op), launch)


def test_float32_is_not_expanded_natively() -> None:
    args = arguments("expand_depthwise", SMALL, channels=(8, 24), layout="channels_last")
    with pytest.raises(RuntimeError, match="x must be float16 or bfloat16, found Float"):
        native("expand_depthwise", args)


def dispatched(op: str, args: Arguments) -> Any:
    """The op of ``effv2`` as CUDA tensors get it, with CPU tensors."""
    return getattr(torch.ops.effv2, op).default.redispatch(KEYS, *ordered(op, args))


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on that GPU, but that tensors are on the CPU; what fits is run fused."""
    stand_in = {
        op: SimpleNamespace(
            default=partial(getattr(torch.ops.effv2_native, op).default.redispatch, KEYS)
        )
        for op in LAUNCH
    }
    monkeypatch.setattr(cuda, "NATIVE", SimpleNamespace(**stand_in))
    monkeypatch.setattr(targets, "of_device", lambda device: targets.KNOWN["sm_90a"])
    monkeypatch.setattr(expand_depthwise, "separate_clocks", lambda problem, target: float("inf"))
    expand_depthwise.choose.cache_clear()
    yield
    expand_depthwise.choose.cache_clear()


@pytest.mark.parametrize("op", LAUNCH)
def test_cuda_tensors_reach_the_native_op(op: str, h200: None) -> None:
    """With everything right but the device, which only the native op looks at."""
    args = right(op) | {"padding": []}
    with pytest.raises(RuntimeError, match="^effv2::.*x must be on a CUDA device, found cpu"):
        dispatched(op, args)


@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("depthwise_bias_act", {"dtype": torch.float64}),
        ("depthwise_bias_act", {"geometry": GEOMETRIES["3x5"]}),
        ("depthwise_bias_act", {"geometry": GEOMETRIES["3x3 four sides"]}),  # two strides
        ("depthwise_bias_act", {"batch": 0}),
        ("stem", {"geometry": STEM, "channels": (4, 20)}),
        ("stem", {"geometry": GEOMETRIES["3x3"], "channels": (3, 20)}),  # stride 1
        ("stem", {"geometry": STEM, "channels": (3, 257)}),
        ("stem", {"geometry": GEOMETRIES["5x5 stride 2 SAME"], "channels": (3, 20)}),
    ],
    ids=str,
)
def test_what_is_declined_runs_through_aten(
    op: str, options: dict, h200: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Triton, which comes before ATen, would want a GPU.
    monkeypatch.setattr("effv2_kernels.engines.triton.missing", lambda: "not here")
    monkeypatch.setattr("effv2_kernels.ops._op._TOLD", set())
    args = arguments(op, **{"geometry": SMALL, **options})
    with pytest.warns(UserWarning, match=rf"effv2::{op} runs through ATen .cuda: "):
        found, expected = dispatched(op, args), plain(op, args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        dispatched(op, args)
    for output, theirs in zip(
        found if isinstance(found, tuple) else (found,), expected, strict=True
    ):
        assert torch.allclose(output, theirs, rtol=1e-5, atol=1e-5)


def test_wrong_arguments_are_refused_before(h200: None) -> None:
    """By the contract of the op itself, which is the same on every device."""
    args = right("depthwise_bias_act") | {"act": "swish"}
    with pytest.raises(RuntimeError, match="act must be one of none, silu.*got 'swish'"):
        dispatched("depthwise_bias_act", args)
