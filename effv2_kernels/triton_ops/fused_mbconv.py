"""``fused_mbconv`` on Triton: one launch, or two convolutions where one cannot hold the block."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..launch.fused_mbconv import Choice, Shape
from ..launch.selection import choose
from ..triton_kernels.fused_mbconv import fused_mbconv_kernel
from . import _arguments as arguments
from ._launch import launch, target_of
from .conv import conv_bias_act


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
    ``residual`` adds x. Returns (N, O, H', W'), channels_last. Declines float64 and 2^31 pixels."""
    kernel = tuple(expand_weight.shape[2:])
    window = arguments.window(x, kernel, stride, padding)
    expanded, out_channels = expand_weight.shape[0], project_weight.shape[0]
    out = arguments.empty_nhwc(x, out_channels, window.out_height, window.out_width)
    if not (arguments.runs(x) and arguments.runs(out)) or 0 in (x.shape[1], expanded):
        return NotImplemented
    if out.numel() == 0:
        return out
    kind = arguments.kind(x)
    rows = out.shape[0] * window.out_height * window.out_width
    taps, special = kernel[0] * kernel[1], arguments.special(act)
    shape = Shape(rows, x.shape[1], expanded, out_channels, taps, special)
    choice: Choice | None = choose("fused_mbconv", shape, kind, target_of(x))
    x = arguments.nhwc(x)
    if choice is None:
        expand = expand_weight, expand_bias, expand_norm, expand_eps
        hidden = conv_bias_act(x, *expand, None, stride, padding, act)
        project = project_weight, project_bias, project_norm, project_eps
        skip = x if residual else None
        return conv_bias_act(hidden, *project, skip, (1, 1), (0, 0, 0, 0), "none")
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
        "THROUGH_L1": arguments.through_l1(x, taps),
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
        (-(-rows // choice.block_m), 1, 1),
        (*operands, rows, *window.numbers),
        constants,
        warps=choice.warps,
        stages=choice.stages,
    )
    return out
