"""``fused_mbconv`` on Triton: one launch, where that can hold the block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...launch.targets import Target
from ...launch.triton.fused_mbconv import Choice, Shape
from ...launch.triton.selection import choose
from ...triton_kernels.fused_mbconv import fused_mbconv_kernel
from . import TOO_LARGE
from . import _arguments as arguments
from ._launch import INTERPRETER, launch, target_of


def why_not_fused_mbconv(given: Sequence[Any], target: Target | None) -> str | None:
    x, weight, _, _, _, project_weight, _, _, _, _, stride, padding, act = given
    why = arguments.why_not(x, weight, stride, padding)
    if why:
        return why
    if weight.shape[0] == 0:
        return "there are no channels"
    shape = _shape(x, weight, project_weight, stride, padding, act)
    if shape.rows == 0:
        return None
    found = choose("fused_mbconv", shape, arguments.kind(x), target or INTERPRETER)
    return TOO_LARGE if found is None else None


def _shape(
    x: Tensor,
    expand_weight: Tensor,
    project_weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Shape:
    kernel = tuple(expand_weight.shape[2:])
    window = arguments.window(x, kernel, stride, padding)
    rows = x.shape[0] * window.out_height * window.out_width
    channels = x.shape[1], expand_weight.shape[0], project_weight.shape[0]
    return Shape(rows, *channels, kernel[0] * kernel[1], arguments.special(act))


def fused_mbconv(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    expand_norm: Sequence[Tensor],
    expand_eps: float,
    project_weight: Tensor,
    project_bias: Tensor | None,
    project_norm: Sequence[Tensor],
    project_eps: float,
    residual: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    """x: (N, C, H, W); expand_weight: (E, C, k, k), without a copy if channels_last;
    project_weight: (O, E, 1, 1); biases and norms: (E,) or (O,) each, as in ``_arguments.affine``.
    ``residual`` adds x. Returns (N, O, H', W'), channels_last."""
    kernel = tuple(expand_weight.shape[2:])
    window = arguments.window(x, kernel, stride, padding)
    expanded, out_channels = expand_weight.shape[0], project_weight.shape[0]
    out = arguments.empty_nhwc(x, out_channels, window.out_height, window.out_width)
    if out.numel() == 0:
        return out
    shape = _shape(x, expand_weight, project_weight, stride, padding, act)
    choice: Choice = choose("fused_mbconv", shape, arguments.kind(x), target_of(x))
    x = arguments.nhwc(x)
    first = arguments.affine(expand_bias, expand_norm, expand_eps)
    second = arguments.affine(project_bias, project_norm, project_eps)
    constants = {
        "C": x.shape[1],
        "E": expanded,
        "OUT": out_channels,
        "KH": kernel[0],
        "KW": kernel[1],
        "PLAIN": window.plain,
        "RESIDUAL": residual,
        "EXPAND_EPS": first.eps,
        "PROJECT_EPS": second.eps,
        "ACT": act,
        "FAST": arguments.fast(act, x),
        "PRECISION": arguments.precision(x),
        "WIDE": arguments.wide(x, out),
        "THROUGH_L1": arguments.through_l1(x, shape.taps),
        "BLOCK_M": choice.block_m,
        "BLOCK_E": choice.block_e,
        "BLOCK_F": choice.block_f,
        "BLOCK_K": choice.block_k,
        "BLOCK_O": shape.block_o,
    }
    operands = (
        *(x, arguments.nhwc(expand_weight), *first.vectors),
        *(arguments.nhwc(project_weight), *second.vectors, out),
    )
    launch(
        fused_mbconv_kernel,
        (-(-shape.rows // choice.block_m), 1, 1),
        (*operands, shape.rows, *window.numbers),
        constants,
        warps=choice.warps,
        stages=choice.stages,
    )
    return out
