"""Convolutions of training on a CPU, by oneDNN: through ATen, and 1x1 ones as products of matrices,
whose weights oneDNN reads as they lie, where a convolution converts them at each call.

With one thread and a batch below 16 ATen itself leaves a 1x1 convolution to a path of half that
speed, and so where oneDNN's product is not to be had the pixels are shown to it as 16 images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._torch import onednn_linear
from . import aten
from .onednn import runs_onednn

_BATCH_FOR_ONEDNN = 16
# Up to so many pixels, or from so many times as many input channels as output channels, a product
# gives the gradient of the weight sooner than a convolution does (measured on V2-S at 128 pixels).
_FEW_PIXELS = 512
_MANY_INPUTS = 4


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """x: (N, C, H, W); weight: (O, C / groups, kh, kw), of any dtype; padding as in the ops. The
    result is (N, O, H', W'), channels_last, in x's dtype."""
    groups = x.shape[1] // weight.shape[1]
    weight, bias = weight.to(x.dtype), bias if bias is None else bias.to(x.dtype)
    x, symmetric = aten.pad_uneven(x, weight.shape[2:], stride, padding)
    x = aten.channels_last(x)
    if groups > 1 or not _is_pointwise(weight, stride, symmetric):
        y = torch.conv2d(x, weight, bias, tuple(stride), symmetric, groups=groups)
        return aten.channels_last(y)
    if bias is None and runs_onednn(x):
        return _maps(onednn_linear(_rows(x), weight.flatten(1)), x)
    y = torch.conv2d(_as_large_batch(x), weight, bias)
    return aten.channels_last(_maps(_rows(y), x))


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
    if groups == 1 and _is_pointwise(weight, stride, symmetric):
        if runs_onednn(x):
            return _pointwise_backward(grad, padded, weight, wanted)
        arguments = _as_large_batch(grad), _as_large_batch(padded)
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        *(*arguments, weight.to(x.dtype), None, tuple(stride), symmetric),
        *((1, 1), False, (0, 0), groups, [*wanted, False]),
    )
    if wanted[0]:
        dx = _maps(_rows(aten.channels_last(dx)), padded)
        if padded.shape != x.shape:
            dx = dx[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        dx = aten.channels_last(dx)
    return dx, like(weight, dweight) if wanted[1] else None


def _pointwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    dx, dweight = None, None
    if wanted[0]:
        dx = _maps(onednn_linear(_rows(grad), weight.to(x.dtype).flatten(1).t()), x)
    if wanted[1]:
        outputs, inputs = weight.shape[:2]
        pixels = x.numel() // inputs
        if pixels <= _FEW_PIXELS or inputs >= _MANY_INPUTS * outputs:
            product = onednn_linear(_rows(grad).t(), _rows(x).t())
            dweight = like(weight, product.view(weight.shape))
        else:
            _, found, _ = torch.ops.aten.convolution_backward(
                *(_as_large_batch(grad), _as_large_batch(x), weight.to(x.dtype), None),
                *((1, 1), (0, 0), (1, 1), False, (0, 0), 1, [False, True, False]),
            )
            dweight = like(weight, found)
    return dx, dweight


def _is_pointwise(weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    return tuple(weight.shape[2:]) == tuple(stride) == (1, 1) and tuple(padding) == (0, 0)


def _rows(x: Tensor) -> Tensor:
    """A channels_last map as a matrix, (pixels of all images, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """Rows as (N, C, H, W), channels_last, with images and pixels as ``like`` has them."""
    n, _, height, width = like.shape
    return rows.view(n, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def _as_large_batch(x: Tensor) -> Tensor:
    """The same pixels as more images, where that is needed."""
    n, channels, height, width = x.shape
    if n >= _BATCH_FOR_ONEDNN or n * height * width % _BATCH_FOR_ONEDNN:
        return x
    return _rows(x).view(_BATCH_FOR_ONEDNN, 1, -1, channels).permute(0, 3, 1, 2)


def like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """In the dtype and the strides of the parameter, which autograd would copy it into."""
    if gradient.dtype == parameter.dtype:
        if gradient.stride() == parameter.stride():
            return gradient
        axes = zip(parameter.shape, parameter.stride(), gradient.stride(), strict=True)
        if all(size == 1 or own == other for size, own, other in axes):  # the same memory
            return gradient.as_strided(parameter.shape, parameter.stride())
    return torch.empty_like(parameter).copy_(gradient)
