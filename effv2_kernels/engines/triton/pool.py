"""``conv_act_pool`` on Triton, and the end of every mean that is computed in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...launch.targets import Target
from ...launch.triton.conv_act_pool import Choice, Shape, tiles_of_a_part
from ...launch.triton.dense import count, power_of_two
from ...launch.triton.selection import choose
from ...triton_kernels.pool import conv_act_pool_kernel, finish_mean_kernel
from . import _arguments as arguments
from ._launch import launch, target_of

_FINISH_PARTS, _FINISH_CHANNELS = 8, 64
_MOST_IMAGES = 65535  # of the third dimension of a grid


def why_not_conv_act_pool(given: Sequence[Any], target: Target | None) -> str | None:
    x, weight, *_ = given
    if x.numel() == 0 or weight.shape[0] == 0:
        return "the map is empty"
    if x.shape[0] > _MOST_IMAGES:
        return f"there are more than {_MOST_IMAGES} images"
    return arguments.why_not(x, weight)


def conv_act_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Sequence[Tensor],
    eps: float,
    act: str,
) -> Tensor:
    """x: (N, I, H, W); weight: (O, I, 1, 1), without a copy if dense; bias: (O,) or None; norm:
    (O,) each, as in ``_arguments.affine``. Returns the mean over H x W of act(norm(conv(x))): (N,
    O). Declines float64, empty maps and 2^31 pixels."""
    images, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    out_channels = weight.shape[0]
    out = arguments.empty(x, images, out_channels)
    kind = arguments.kind(x)
    shape = Shape(images, pixels, channels, out_channels, arguments.special(act))
    choice: Choice = choose("conv_act_pool", shape, kind, target_of(x))
    tiles = tiles_of_a_part(shape, choice)
    parts = count(count(pixels, choice.block_m), tiles)
    into = out if parts == 1 else partial_sums(x, parts, out_channels)
    affine = arguments.affine(bias, norm, eps)
    constants = {
        "C": channels,
        "OUT": out_channels,
        "PARTIAL": parts > 1,
        "EPS": affine.eps,
        "ACT": act,
        "FAST": arguments.fast(act, x),
        "PRECISION": arguments.precision(x),
        "WIDE": arguments.wide(x),
        "TILES": tiles,
        "BLOCK_M": choice.block_m,
        "BLOCK_N": choice.block_n,
        "BLOCK_K": choice.block_k,
    }
    operands = arguments.nhwc(x), arguments.nhwc(weight), *affine.vectors, into
    launch(
        conv_act_pool_kernel,
        (-(-out_channels // choice.block_n), parts, images),
        (*operands, pixels),
        constants,
        warps=choice.warps,
        stages=choice.stages,
    )
    if parts > 1:
        finish_mean(into, out, pixels)
    return out


def partial_sums(x: Tensor, parts: int, channels: int) -> Tensor:
    """Room for the sums over parts of each image of x: float32 (N, parts, channels)."""
    return arguments.empty(x, x.shape[0], parts, channels, dtype=torch.float32)


def finish_mean(partial: Tensor, out: Tensor, pixels: int) -> None:
    """out, (N, C), becomes the sum of the parts over ``pixels``."""
    images, parts, channels = partial.shape
    constants = {
        "C": channels,
        "PARTS": power_of_two(parts, _FINISH_PARTS),
        "BLOCK_P": _FINISH_PARTS,
        "BLOCK_C": _FINISH_CHANNELS,
    }
    grid = (-(-channels // _FINISH_CHANNELS), images, 1)
    launch(finish_mean_kernel, grid, (partial, out, parts, pixels), constants, warps=4)
