"""``conv_bias_act``, ``gated_project`` and ``stem`` on Triton: one implicit GEMM, or for some 1x1
convolutions ``pointwise``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...launch.targets import Target
from ...launch.triton.conv import Choice, Shape, in_tiles, stages_with_gate
from ...launch.triton.selection import choose
from ...triton_kernels.conv import conv_kernel, finish_split_kernel
from . import _arguments as arguments
from ._arguments import Affine
from ._launch import launch, target_of
from .pointwise import stream

_FINISH_BLOCK = 512


def why_not_conv_bias_act(given: Sequence[Any], target: Target | None) -> str | None:
    x, weight, _, _, _, _, stride, padding, *_ = given
    return arguments.why_not(x, weight, stride, padding)


def conv_bias_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Sequence[Tensor],
    eps: float,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    """x: (N, I, H, W); weight: (O, I, kh, kw), without a copy if channels_last; bias: (O,) or None;
    norm: (O,) each, as in ``_arguments.affine``; residual: (N, O, H', W') or None, added after the
    activation. Returns (N, O, H', W'), channels_last. Declines float64 and 2^31 pixels."""
    affine = arguments.affine(bias, norm, eps)
    return convolve(x, weight, affine, None, residual, stride, padding, act)


def why_not_gated_project(given: Sequence[Any], target: Target | None) -> str | None:
    x, _, weight, *_ = given
    return arguments.why_not(x, weight)


def gated_project(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Sequence[Tensor],
    eps: float,
    residual: Tensor | None,
    act: str,
) -> Tensor:
    """x: (N, E, H, W); gate: (N, E), by which x is multiplied as it is loaded; weight: (O, E, 1,
    1); bias, norm: (O,) each; residual: (N, O, H, W) or None. Returns (N, O, H, W), channels_last.
    Declines float64 and 2^31 pixels."""
    affine = arguments.affine(bias, norm, eps)
    return convolve(x, weight, affine, gate, residual, (1, 1), (0, 0, 0, 0), act)


def why_not_stem(given: Sequence[Any], target: Target | None) -> str | None:
    x, weight, _, _, _, stride, padding, *_ = given
    return arguments.why_not(x, weight, stride, padding)


def stem(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Sequence[Tensor],
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    """x: (N, I, H, W) of any floating dtype, cast to weight's first. Returns (N, O, H', W') in
    weight's dtype, channels_last."""
    affine = arguments.affine(bias, norm, eps)
    return convolve(x.to(weight.dtype), weight, affine, None, None, stride, padding, act)


def convolve(
    x: Tensor,
    weight: Tensor,
    affine: Affine,
    gate: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    """act(affine(conv(x * gate, weight))) + residual."""
    kernel = tuple(weight.shape[2:])
    window = arguments.window(x, kernel, stride, padding)
    out = arguments.empty_nhwc(x, weight.shape[0], window.out_height, window.out_width)
    if out.numel() == 0:
        return out
    x, weight = arguments.nhwc(x), arguments.nhwc(weight)
    gate = gate if gate is None else gate.contiguous()
    residual = residual if residual is None else arguments.nhwc(residual)
    rows = out.shape[0] * window.out_height * window.out_width
    channels, taps = x.shape[1], kernel[0] * kernel[1]
    special = arguments.special(act)
    shape = Shape(rows, channels, weight.shape[0], taps, gate is not None, special)
    kind = arguments.kind(x)
    target = target_of(x)
    choice: Choice = choose("conv", shape, kind, target)
    if choice.resident and window.plain and gate is None:
        stream(x, weight, affine, residual, out, act, shape, choice)
        return out
    choice = in_tiles(choice)
    split, stages = choice.split_k, choice.stages
    images = _images_of_a_tile(gate, window.height * window.width, choice.block_m)
    if gate is not None and images == 0:
        stages = stages_with_gate(choice, kind, target)
    # Partial sums are sums and nothing else.
    now, then = (affine, residual) if split == 1 else (Affine(), None)
    constants = {
        "C": channels,
        "OUT": weight.shape[0],
        "KH": kernel[0],
        "KW": kernel[1],
        "PLAIN": window.plain,
        "GATED": gate is not None,
        "IMAGES": images,
        "RESIDUAL": then is not None,
        "EPS": now.eps,
        "ACT": act if split == 1 else "none",
        "FAST": arguments.fast(act, x) and split == 1,
        "PRECISION": arguments.precision(x),
        "WIDE": arguments.wide(x, out),
        "THROUGH_L1": arguments.through_l1(x, taps),
        "SPLIT_K": split,
        "BLOCK_M": choice.block_m,
        "BLOCK_N": choice.block_n,
        "BLOCK_R": choice.block_r,
        "BLOCK_K": choice.block_k,
    }
    tiles = -(-rows // choice.block_m) * -(-weight.shape[0] // choice.width)
    into = out if split == 1 else arguments.empty(out, split, out.numel(), dtype=torch.float32)
    launch(
        conv_kernel,
        (tiles, split, 1),
        (x, weight, *now.vectors, gate, then, into, rows, *window.numbers),
        constants,
        warps=choice.warps,
        stages=stages,
    )
    if split > 1:
        _finish(into, affine, residual, out, act, split)
    return out


def _images_of_a_tile(gate: Tensor | None, pixels: int, block_m: int) -> int:
    """In how many images a tile of block_m pixels lies: 1, 2, or 0 where it may be in more."""
    if gate is None or pixels % block_m == 0:
        return int(gate is not None)
    return 2 if pixels >= block_m else 0


def _finish(
    partial: Tensor, affine: Affine, residual: Tensor | None, out: Tensor, act: str, split: int
) -> None:
    constants = {
        "OUT": out.shape[1],
        "RESIDUAL": residual is not None,
        "EPS": affine.eps,
        "ACT": act,
        "FAST": arguments.fast(act, out),
        "SPLIT_K": split,
        "BLOCK": _FINISH_BLOCK,
    }
    grid = (-(-out.numel() // _FINISH_BLOCK), 1, 1)
    operands = (partial, *affine.vectors, residual, out, out.numel())
    launch(finish_split_kernel, grid, operands, constants, warps=4)
