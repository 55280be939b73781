"""The ops' arithmetic in plain PyTorch: the reference of their tests, their backward, and what
runs on a device that has no kernel of ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import FUNCTIONS


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TF SAME: (before, after) so that the output has ceil(size / stride) elements; the odd
    element goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def four_sides(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int, int, int]:
    """(top, bottom, left, right); an empty ``padding`` means TF SAME at x's size."""
    if padding:
        top, bottom, left, right = padding
        return top, bottom, left, right
    return (
        *same_padding(x.shape[2], kernel[0], stride[0]),
        *same_padding(x.shape[3], kernel[1], stride[1]),
    )


def pad_uneven(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, tuple[int, int]]:
    """x and the symmetric padding left for the convolution to do; uneven sides are padded here."""
    top, bottom, left, right = four_sides(x, kernel, stride, padding)
    if top == bottom and left == right:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom)), (0, 0)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    act: str = "none",
    groups: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """act(conv(x, weight) + bias) + residual, channels_last."""
    if weight.is_mkldnn:  # packed for oneDNN, which is not what runs here
        weight = weight.to_dense()
    x, symmetric = pad_uneven(x, weight.shape[2:], stride, padding)
    y = F.conv2d(x, weight, bias.to(x.dtype), tuple(stride), symmetric, groups=groups)
    y = FUNCTIONS[act](y)
    return channels_last(y if residual is None else y + residual)


def ambiguous(*maps: Tensor) -> bool:
    """Whether one has one channel, one pixel or nothing: several strides are channels_last then.
    (Height and width are not compared with each other: a trace would be tied to the answer.)"""
    return any(
        x.shape[1] == 1 or (x.shape[2] == 1 and x.shape[3] == 1) or x.numel() == 0 for x in maps
    )


def channels_last(y: Tensor) -> Tensor:
    """y in channels_last, with the very strides that an empty tensor of that format has, since
    those are what the ops' fakes promise."""
    if ambiguous(y):
        return torch.empty_like(y, memory_format=torch.channels_last).copy_(y)
    return y.contiguous(memory_format=torch.channels_last)


def mean(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C)."""
    return x.mean((2, 3))
