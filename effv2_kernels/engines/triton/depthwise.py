"""``depthwise_bias_act`` on Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...launch.targets import Target
from ...launch.triton.depthwise import Choice, Shape, parts
from ...launch.triton.selection import choose
from ...triton_kernels.depthwise import depthwise_kernel
from . import _arguments as arguments
from ._launch import INTERPRETER, launch, target_of
from .pool import finish_mean, partial_sums

_MOST_TAPS = 121  # the loop over them is unrolled
_MOST_PROGRAMS = 65535  # of the second and third dimension of a grid


def why_not_depthwise_bias_act(given: Sequence[Any], target: Target | None) -> str | None:
    x, weight, _, _, _, stride, padding, *_ = given
    why = arguments.why_not(x, weight, stride, padding)
    if why:
        return why
    height, width = weight.shape[2:]
    window = arguments.window(x, (height, width), stride, padding)
    pixels = window.out_height * window.out_width
    if x.shape[0] * pixels == 0:
        return "the map is empty"
    if height * width > _MOST_TAPS:
        return f"it has no {height}x{width} window"
    shape = Shape(x.shape[0], pixels, x.shape[1], height * width)
    choice = choose("depthwise", shape, arguments.kind(x), target or INTERPRETER)
    if max(x.shape[0], parts(shape, choice)) > _MOST_PROGRAMS:
        return f"there are more than {_MOST_PROGRAMS} images, or parts of one"
    return None


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
    pixels = window.out_height * window.out_width
    shape = Shape(images, pixels, channels, kernel[0] * kernel[1])
    choice: Choice = choose("depthwise", shape, arguments.kind(x), target_of(x))
    split = parts(shape, choice)
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
