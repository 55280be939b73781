"""``depthwise_bias_act`` on Triton, and ``expand_depthwise`` as a convolution and it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..launch.depthwise_triton import Choice, Shape, parts
from ..launch.selection import choose
from ..triton_kernels.depthwise import depthwise_kernel
from . import _arguments as arguments
from ._launch import launch, target_of
from .conv import conv_bias_act
from .pool import finish_mean, partial_sums

_MOST_TAPS = 121  # the loop over them is unrolled
_MOST_PROGRAMS = 65535  # of the second and third dimension of a grid


def depthwise_bias_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Sequence[Tensor],
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    squeeze: bool,
) -> tuple[Tensor, Tensor]:
    """x: (N, C, H, W); weight: (C, 1, kh, kw); bias: (C,) or None; norm: (C,) each, as in
    ``_arguments.affine``. Returns y: (N, C, H', W'), channels_last, and its mean over H' x W': (N,
    C), or (N, 0) without ``squeeze``. Declines float64, windows beyond 11 x 11, empty maps and 2^31
    pixels."""
    kernel = tuple(weight.shape[2:])
    window = arguments.window(x, kernel, stride, padding)
    images, channels = x.shape[0], x.shape[1]
    y = arguments.empty_nhwc(x, channels, window.out_height, window.out_width)
    if not (arguments.runs(x) and arguments.runs(y)) or y.numel() == 0:
        return NotImplemented
    pixels = window.out_height * window.out_width
    shape = Shape(images, pixels, channels, kernel[0] * kernel[1])
    choice: Choice = choose("depthwise", shape, arguments.kind(x), target_of(x))
    split = parts(shape, choice)
    if shape.taps > _MOST_TAPS or max(images, split) > _MOST_PROGRAMS:
        return NotImplemented
    pooled = arguments.empty(x, images, channels if squeeze else 0)
    sums = partial_sums(x, split, channels) if squeeze else None
    affine = arguments.affine(bias, norm, eps)
    constants = {
        "C": channels,
        "KH": kernel[0],
        "KW": kernel[1],
        "SQUEEZE": squeeze,
        "EPS": affine.eps,
        "ACT": act,
        "FAST": arguments.fast(act, x),
        "WIDE": arguments.wide(x, y),
        "TILES": choice.tiles,
        "BLOCK_P": choice.block_p,
        "BLOCK_C": choice.block_c,
    }
    launch(
        depthwise_kernel,
        (-(-channels // choice.block_c), split, images),
        (arguments.nhwc(x), weight.contiguous(), *affine.vectors, y, sums, *window.numbers),
        constants,
        warps=choice.warps,
    )
    if sums is not None:
        finish_mean(sums, pooled, pixels)
    return y, pooled


def expand_depthwise(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    expand_norm: Sequence[Tensor],
    expand_eps: float,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    depthwise_norm: Sequence[Tensor],
    depthwise_eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    squeeze: bool,
) -> tuple[Tensor, Tensor]:
    """x: (N, I, H, W); expand_weight: (E, I, 1, 1); depthwise_weight: (E, 1, k, k); biases and
    norms: (E,) each. The expanded tensor goes through memory. Returns y: (N, E, H', W'),
    channels_last, and its mean, or (N, 0) without ``squeeze``. Declines what one of the two
    declines."""
    expand = expand_weight, expand_bias, expand_norm, expand_eps
    hidden = conv_bias_act(x, *expand, None, (1, 1), (0, 0, 0, 0), act)
    if hidden is NotImplemented:
        return NotImplemented
    depthwise = depthwise_weight, depthwise_bias, depthwise_norm, depthwise_eps
    return depthwise_bias_act(hidden, *depthwise, stride, padding, act, squeeze)
