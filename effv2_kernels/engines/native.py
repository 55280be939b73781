"""The CUDA backend: what CUDA tensors run where the native library was built.

Two functions an op, with the arguments of its schema: why its kernel does not compute them on a
target, and what does. The latter chooses the launch (``launch/``), resolves TF SAME padding, and
calls the native op of the same name, in the namespace ``effv2_native`` (csrc/*_ops.cpp).
``convert`` is no op of ``effv2``: what prepares weights calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..launch import targets
from ..launch.native import depthwise
from ..launch.native import expand_depthwise as expand_depthwise_launch
from ..launch.targets import Target
from . import aten

NATIVE: Any = torch.ops.effv2_native
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LOADED = _native.load().loaded
Norm = Sequence[Tensor]
# Offsets within an image are 32-bit.
MOST_ELEMENTS = 2**31 - 1
MOST_PADDING = 64


def missing() -> str:
    """Why there are no native kernels, or an empty string."""
    return "" if LOADED else f"the native library is not loaded: {_native.load().reason}"


def why_not_depthwise(arguments: Sequence[Any], target: Target | None) -> str | None:
    x, weight, _, _, _, stride, padding, *_ = arguments
    return _why_not_window(x, weight, x.shape[1], stride, padding, (3, 5, 7))


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
    size = aten.out_size(x, weight.shape[2:], stride, sides)
    n, channels = x.shape[:2]
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


def why_not_expand_depthwise(arguments: Sequence[Any], target: Target | None) -> str | None:
    x, expand_weight, _, _, _, depthwise_weight, _, _, _, stride, padding, *_ = arguments
    why = _why_not_window(x, depthwise_weight, expand_weight.shape[0], stride, padding, (3, 5))
    if why or target is None:
        return why
    problem = _problem(x, expand_weight, depthwise_weight, stride, padding)
    if not problem.takes:
        return "it computes in 16 bits, and channels that are multiples of 8"
    if expand_depthwise_launch.choose(problem, target) is None:
        return "the two ops are expected to be faster at this shape"
    return None


def expand_depthwise(
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
    """x: (N, I, H, W); expand_weight: (E, I, 1, 1); depthwise_weight: (E, 1, k, k), k 3 or 5."""
    problem = _problem(x, expand_weight, depthwise_weight, stride, padding)
    launch = expand_depthwise_launch.choose(problem, targets.of_device(x.device))
    assert launch is not None
    return NATIVE.expand_depthwise.default(
        _aligned(_channels_last(x)),
        _aligned(expand_weight.contiguous()),
        *_dense(expand_bias, expand_norm),
        expand_eps,
        _aligned(depthwise_weight.contiguous()),
        *_dense(depthwise_bias, depthwise_norm),
        depthwise_eps,
        stride,
        aten.four_sides(x, depthwise_weight.shape[2:], stride, padding),
        act,
        squeeze,
        launch.integers(),
    )


def _problem(
    x: Tensor,
    expand_weight: Tensor,
    depthwise_weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
) -> expand_depthwise_launch.Problem:
    n, into, height, width = x.shape
    sides = aten.four_sides(x, depthwise_weight.shape[2:], stride, padding)
    size = aten.out_size(x, depthwise_weight.shape[2:], stride, sides)
    return expand_depthwise_launch.Problem(
        *(n, into, expand_weight.shape[0], (height, width), size),
        *(depthwise_weight.shape[2], stride[0], x.dtype),
    )


def why_not_stem(arguments: Sequence[Any], target: Target | None) -> str | None:
    x, weight, _, _, _, stride, padding, *_ = arguments
    why = _why_not_window(x, weight, weight.shape[0], stride, padding, (3,))
    if why:
        return why
    if weight.dtype not in DTYPES:
        return _no_dtype(weight)
    if x.shape[1] != 3 or stride[0] != 2 or weight.shape[0] > 256:
        return "it takes 3 channels at stride 2, and gives 256 at most"
    return None


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
    if not x.is_contiguous():
        x = _channels_last(x)
    if not weight.is_contiguous():
        weight = _channels_last(weight)
    return NATIVE.stem.default(x, weight, *_dense(bias, norm), eps, stride, sides, act)


def why_not_gate(arguments: Sequence[Any], target: Target | None) -> str | None:
    pooled, reduce_weight, *_ = arguments
    if pooled.dtype not in DTYPES:
        return _no_dtype(pooled)
    return "there are no channels" if 0 in reduce_weight.shape else None


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


def _why_not_window(
    x: Tensor,
    weight: Tensor,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    kernels: Sequence[int],
) -> str | None:
    """Why the dtype, the window, the padding or the size are none that a kernel has code for;
    ``channels``: of the output."""
    sides = aten.four_sides(x, weight.shape[2:], stride, padding)
    height, width = weight.shape[2:]
    if x.dtype not in DTYPES:
        return _no_dtype(x)
    if x.numel() == 0:
        return "the map is empty"
    if height != width or height not in kernels:
        return f"it has no {height}x{width} window"
    if stride[0] != stride[1] or stride[0] not in (1, 2):
        return f"it has no stride {tuple(stride)}"
    if max(sides) > MOST_PADDING:
        return f"padding is more than {MOST_PADDING}"
    if not (
        _fits(x.shape[1:]) and _fits((channels, *aten.out_size(x, weight.shape[2:], stride, sides)))
    ):
        return "an image has 2^31 elements or more"
    return None


def _no_dtype(tensor: Tensor) -> str:
    return f"it does not compute in {str(tensor.dtype).removeprefix('torch.')}"


def _fits(shape: Sequence[int]) -> bool:
    """Whether an image of ``shape`` can be addressed with 32 bits."""
    channels, height, width = shape
    return channels * height * width <= MOST_ELEMENTS


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
