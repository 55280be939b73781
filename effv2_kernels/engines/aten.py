"""The ops' arithmetic in plain PyTorch: the reference of their tests, their backward, and what
runs on a device that has no kernel of ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activations import FUNCTIONS


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


def out_size(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    """Height and width of the convolution's output; TF SAME gives ceil(size / stride)."""
    return size_after(x.shape[2:], kernel, stride, padding)


def size_after(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    """The same of an input of ``size``, height and width."""
    height, width = size
    if not padding:
        return -(-height // stride[0]), -(-width // stride[1])
    top, bottom, left, right = padding
    return (
        (height + top + bottom - kernel[0]) // stride[0] + 1,
        (width + left + right - kernel[1]) // stride[1] + 1,
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
    bias: Tensor | None,
    norm: Sequence[Tensor] = (),
    eps: float = 0.0,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    act: str = "none",
    groups: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """act(norm(conv(x, weight) + bias)) + residual, channels_last. norm: (mean, variance) or
    (mean, variance, gamma, beta) of a batch norm in evaluation; () for none."""
    if weight.is_mkldnn:  # packed for oneDNN, which is not what runs here
        weight = weight.to_dense()
    x, symmetric = pad_uneven(x, weight.shape[2:], stride, padding)
    bias = bias if bias is None else bias.to(x.dtype)
    y = F.conv2d(x, weight, bias, tuple(stride), symmetric, groups=groups)
    if norm:
        y = normed(y, norm, eps)
    y = FUNCTIONS[act](y)
    return channels_last(y if residual is None else y + residual)


def four(norm: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """mean, variance, gamma, beta of a norm that has the first two at least."""
    mean, variance, *affine = norm
    gamma, beta = affine or (None, None)
    assert mean is not None and variance is not None
    return mean, variance, gamma, beta


def normed(y: Tensor, norm: Sequence[Tensor], eps: float) -> Tensor:
    """Batch norm in evaluation, differentiable in all that it is given."""
    mean, variance, gamma, beta = four(norm)
    if not (mean.requires_grad or variance.requires_grad):
        return F.batch_norm(y, mean, variance, gamma, beta, eps=eps)
    # PyTorch's own refuses to.
    wide = torch.promote_types(y.dtype, torch.float32)
    scale, shift = (v[:, None, None] for v in scale_and_shift(None, norm, eps, wide))
    return (y.to(wide) * scale + shift).to(y.dtype)


def folded(
    weight: Tensor,
    bias: Tensor | None,
    norm: Sequence[Tensor | None],
    eps: float,
    wide: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what conv and norm do: gamma / sqrt(variance +
    eps) times the weight, computed in ``wide``, by default float32 or weight's dtype, whatever is
    wider. Both are returned in that dtype."""
    wide = wide or torch.promote_types(weight.dtype, torch.float32)
    scale, shift = scale_and_shift(bias, norm, eps, wide)
    return weight.to(wide) * scale[:, None, None, None], shift


def scale_and_shift(
    bias: Tensor | None, norm: Sequence[Tensor | None], eps: float, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What the norm does to a convolution without its bias, in ``wide``: y scale + shift."""
    mean, variance, gamma, beta = four(norm)
    scale = torch.rsqrt(variance.to(wide) + eps)
    if gamma is not None:
        scale = scale * gamma.to(wide)
    shift = -mean.to(wide) * scale
    if bias is not None:
        shift = shift + bias.to(wide) * scale
    if beta is not None:
        shift = shift + beta.to(wide)
    return scale, shift


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
