"""The CUDA backend: what CUDA tensors run where the native library was built.

One function an op, with the arguments of its schema. Each returns NotImplemented for what its
kernel does not do; else it chooses the launch (``launch/``), resolves TF SAME padding, and calls
the native op of the same name, in the namespace ``effv2_native`` (csrc/*_ops.cpp). ``convert`` is
no op of ``effv2``: what prepares weights calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _native, aten
from .launch import depthwise, expand_depthwise, targets
from .launch.targets import Target

NATIVE: Any = torch.ops.effv2_native
OPS: Any = torch.ops.effv2
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LOADED = _native.load().loaded
Norm = Sequence[Tensor]
# Offsets within an image are 32-bit.
MOST_ELEMENTS = 2**31 - 1
MOST_PADDING = 64


def depthwise_bias_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    squeeze: bool,
) -> tuple[Tensor, Tensor]:
    """x: (N, C, H, W), copied to channels_last if it is not; weight: (C, 1, k, k), k 3, 5 or 7;
    stride 1 or 2, the same on both axes. Returns y and its mean, as ``ops/depthwise_bias_act``."""
    sides = aten.four_sides(x, weight.shape[2:], stride, padding)
    if not _takes(x, weight, stride, sides, (3, 5, 7)):
        return NotImplemented
    size = _out_size(x, weight, stride, sides)
    n, channels = x.shape[:2]
    if not _fits(x.shape[1:]) or not _fits((channels, *size)):
        return NotImplemented
    layout = (n, channels, size, weight.shape[2], stride[0], x.dtype, squeeze)
    launch = depthwise.choose(*layout, targets.of_device(x.device))
    return NATIVE.depthwise_bias_act.default(
        _channels_last(x),
        weight.contiguous(),
        *_dense(bias, norm),
        eps,
        stride,
        sides,
        act,
        squeeze,
        launch.integers(),
    )


def expand_depthwise_(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    expand_norm: Norm,
    expand_eps: float,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    depthwise_norm: Norm,
    depthwise_eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    squeeze: bool,
) -> tuple[Tensor, Tensor]:
    """x: (N, I, H, W); expand_weight: (E, I, 1, 1); depthwise_weight: (E, 1, k, k). One kernel, or
    ``conv_bias_act`` and ``depthwise_bias_act`` where the launch choice says so."""
    sides = aten.four_sides(x, depthwise_weight.shape[2:], stride, padding)
    launch = expand_depthwise_launch(x, expand_weight, depthwise_weight, stride, sides)
    if launch is None:
        convolve, slide = _halves(x)
        expand = expand_weight, expand_bias, expand_norm, expand_eps
        hidden = convolve(x, *expand, None, (1, 1), (0, 0, 0, 0), act)
        along = depthwise_weight, depthwise_bias, depthwise_norm, depthwise_eps
        return slide(hidden, *along, stride, padding, act, squeeze)
    return NATIVE.expand_depthwise.default(
        _aligned(_channels_last(x)),
        _aligned(expand_weight.contiguous()),
        *_dense(expand_bias, expand_norm),
        expand_eps,
        _aligned(depthwise_weight.contiguous()),
        *_dense(depthwise_bias, depthwise_norm),
        depthwise_eps,
        stride,
        sides,
        act,
        squeeze,
        launch.integers(),
    )


def expand_depthwise_launch(
    x: Tensor,
    expand_weight: Tensor,
    depthwise_weight: Tensor,
    stride: Sequence[int],
    sides: Sequence[int],
    target: Target | None = None,
) -> expand_depthwise.ExpandDepthwiseLaunch | None:
    """That of the one kernel on ``target`` (by default x's device); None for the two ops."""
    if not _takes(x, depthwise_weight, stride, sides, (3, 5)):
        return None
    size = _out_size(x, depthwise_weight, stride, sides)
    n, into, height, width = x.shape
    channels = expand_weight.shape[0]
    if not _fits(x.shape[1:]) or not _fits((channels, *size)):
        return None
    problem = expand_depthwise.Problem(
        *(n, into, channels, (height, width), size),
        *(depthwise_weight.shape[2], stride[0], x.dtype),
    )
    return expand_depthwise.choose(problem, target or targets.of_device(x.device))


def _halves(x: Tensor) -> tuple[Callable, Callable]:
    """``conv_bias_act`` and ``depthwise_bias_act`` for x, whose own op has checked it."""
    if not x.is_cuda:
        return OPS.conv_bias_act.default, OPS.depthwise_bias_act.default
    from .ops import ON_CUDA  # which holds what is in this file

    return ON_CUDA["conv_bias_act"], ON_CUDA["depthwise_bias_act"]


def stem(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    """x: (N, 3, H, W) of any of DTYPES, dense in NCHW or NHWC (else copied); weight: (O, 3, 3, 3),
    stride 2. Returns (N, O, H', W') in weight's dtype."""
    sides = aten.four_sides(x, weight.shape[2:], stride, padding)
    if not _takes(x, weight, stride, sides, (3,)) or weight.dtype not in DTYPES:
        return NotImplemented
    channels = weight.shape[0]
    size = _out_size(x, weight, stride, sides)
    if x.shape[1] != 3 or stride[0] != 2 or channels > 256:
        return NotImplemented
    if not _fits(x.shape[1:]) or not _fits((channels, *size)):
        return NotImplemented
    if not x.is_contiguous():
        x = _channels_last(x)
    if not weight.is_contiguous():
        weight = _channels_last(weight)
    return NATIVE.stem.default(x, weight, *_dense(bias, norm), eps, stride, sides, act)


def squeeze_excite_gate(
    pooled: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    act: str = "silu",
    gate: str = "sigmoid",
) -> Tensor:
    """pooled: (N, M); reduce_weight: (R, M); expand_weight: (M, R); all of one dtype."""
    if pooled.dtype not in DTYPES or 0 in reduce_weight.shape:
        return NotImplemented
    tensors = pooled, reduce_weight, reduce_bias, expand_weight, expand_bias
    dense = (tensor.contiguous() for tensor in tensors)
    return NATIVE.squeeze_excite_gate.default(*dense, act, gate)


def convert(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """New tensors of ``dtype``, 4-D ones in channels_last, by one launch for a hundred of them.
    NotImplemented unless all are dense and of DTYPES, on one GPU."""
    if not tensors:
        return []
    takes = LOADED and _on_one_gpu(tensors) and dtype in DTYPES and all(map(_converts, tensors))
    if not takes:
        return NotImplemented
    return NATIVE.convert.default(tensors, dtype)


# By the op's name; empty where the native library is not loaded.
KERNELS: dict[str, Callable] = (
    {
        "stem": stem,
        "depthwise_bias_act": depthwise_bias_act,
        "expand_depthwise": expand_depthwise_,
        "squeeze_excite_gate": squeeze_excite_gate,
    }
    if LOADED
    else {}
)


def _takes(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    sides: Sequence[int],
    kernels: Sequence[int],
) -> bool:
    """Whether the dtype, the window and the padding are ones that a kernel has code for."""
    return (
        x.dtype in DTYPES
        and x.numel() > 0
        and weight.shape[2] == weight.shape[3]
        and weight.shape[2] in kernels
        and stride[0] == stride[1]
        and stride[0] in (1, 2)
        and max(sides) <= MOST_PADDING
    )


def _fits(shape: Sequence[int]) -> bool:
    """Whether an image of ``shape`` can be addressed with 32 bits."""
    channels, height, width = shape
    return channels * height * width <= MOST_ELEMENTS


def _out_size(
    x: Tensor, weight: Tensor, stride: Sequence[int], sides: Sequence[int]
) -> tuple[int, int]:
    top, bottom, left, right = sides
    return (
        (x.shape[2] + top + bottom - weight.shape[2]) // stride[0] + 1,
        (x.shape[3] + left + right - weight.shape[3]) // stride[1] + 1,
    )


def _dense(bias: Tensor | None, norm: Norm) -> tuple[Tensor | None, list[Tensor]]:
    return None if bias is None else bias.contiguous(), [vector.contiguous() for vector in norm]


def _on_one_gpu(tensors: Sequence[Tensor]) -> bool:
    return tensors[0].is_cuda and len({tensor.device for tensor in tensors}) == 1


def _converts(tensor: Tensor) -> bool:
    dense = tensor.is_contiguous() or (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    return dense and tensor.dtype in DTYPES and tensor.numel() <= MOST_ELEMENTS


def _aligned(tensor: Tensor) -> Tensor:
    """At an address that vectors can be read from: only a slice is not."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
