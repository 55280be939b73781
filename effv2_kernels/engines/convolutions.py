"""Convolutions of training on a CPU, through ATen, which gives them to oneDNN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import aten

_BATCH_FOR_ONEDNN = 16


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """x: (N, C, H, W); weight: (O, C / groups, kh, kw), of any dtype; padding as in the ops. The
    result is (N, O, H', W'), channels_last, in x's dtype."""
    groups = x.shape[1] // weight.shape[1]
    weight, bias = weight.to(x.dtype), bias if bias is None else bias.to(x.dtype)
    x, symmetric = aten.pad_uneven(x, weight.shape[2:], stride, padding)
    x = aten.channels_last(x)
    if _is_pointwise(weight, stride, symmetric):
        y = torch.conv2d(_as_large_batch(x), weight, bias)
        return aten.channels_last(_as_maps(y, x.shape))
    return aten.channels_last(
        torch.conv2d(x, weight, bias, tuple(stride), symmetric, groups=groups)
    )


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and of the weight, as far as they are ``wanted``. grad: (N, O, H', W'),
    channels_last, in x's dtype. The first is channels_last in x's dtype, the second is as the
    weight in dtype and strides."""
    kernel, groups = weight.shape[2:], x.shape[1] // weight.shape[1]
    top, _, left, _ = aten.four_sides(x, kernel, stride, padding)
    padded, symmetric = aten.pad_uneven(x, kernel, stride, padding)
    padded = aten.channels_last(padded)
    arguments = grad, padded
    if _is_pointwise(weight, stride, symmetric):
        arguments = _as_large_batch(grad), _as_large_batch(padded)
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        *(*arguments, weight.to(x.dtype), None, tuple(stride), symmetric),
        *((1, 1), False, (0, 0), groups, [*wanted, False]),
    )
    if wanted[0]:
        dx = _as_maps(dx, padded.shape)
        if padded.shape != x.shape:
            dx = dx[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        dx = aten.channels_last(dx)
    return dx, like(weight, dweight) if wanted[1] else None


def _is_pointwise(weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    return tuple(weight.shape[2:]) == tuple(stride) == (1, 1) and tuple(padding) == (0, 0)


def _as_large_batch(x: Tensor) -> Tensor:
    """The same pixels as more images, where that is needed: with one thread and a batch below 16
    ATen leaves a 1x1 convolution to a path of half oneDNN's speed."""
    n, channels, height, width = x.shape
    if n >= _BATCH_FOR_ONEDNN or n * height * width % _BATCH_FOR_ONEDNN:
        return x
    rows = x.permute(0, 2, 3, 1).reshape(_BATCH_FOR_ONEDNN, 1, -1, channels)
    return rows.permute(0, 3, 1, 2)


def _as_maps(x: Tensor, shape: Sequence[int]) -> Tensor:
    """What ``_as_large_batch`` made of maps of ``shape``, but for the channels, taken back."""
    n, _, height, width = shape
    return x.permute(0, 2, 3, 1).reshape(n, height, width, x.shape[1]).permute(0, 3, 1, 2)


def like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """In the dtype and the strides of the parameter, which autograd would copy it into."""
    if gradient.dtype == parameter.dtype:
        if gradient.stride() == parameter.stride():
            return gradient
        axes = zip(parameter.shape, parameter.stride(), gradient.stride(), strict=True)
        if all(size == 1 or own == other for size, own, other in axes):  # the same memory
            return gradient.as_strided(parameter.shape, parameter.stride())
    return torch.empty_like(parameter).copy_(gradient)
