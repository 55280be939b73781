"""A plain 1x1 convolution by programs that keep their weights."""

from __future__ import annotations

from torch import Tensor

from ...launch.triton.conv import Choice, Shape, divided, streams
from ...triton_kernels.pointwise import pointwise_kernel
from . import _arguments as arguments
from ._arguments import Affine
from ._launch import launch, target_of


def stream(
    x: Tensor,
    weight: Tensor,
    affine: Affine,
    residual: Tensor | None,
    out: Tensor,
    act: str,
    shape: Shape,
    choice: Choice,
) -> None:
    """out = act(affine(conv(x, weight))) + residual. All maps (N, C, H, W) in channels_last, and
    weight (O, C, 1, 1); shape: what ``choice`` was made for."""
    width, rest = divided(shape.channels)
    constants = {
        "C": shape.channels,
        "OUT": shape.out_channels,
        "RESIDUAL": residual is not None,
        "EPS": affine.eps,
        "ACT": act,
        "FAST": arguments.fast(act, x),
        "PRECISION": arguments.precision(x),
        "WIDE": arguments.wide(x, out),
        "BLOCK_M": choice.block_m,
        "BLOCK_N": choice.block_n,
        "BLOCK_K": width,
        "BLOCK_L": rest,
    }
    shared_by = streams(shape, choice, target_of(x))
    launch(
        pointwise_kernel,
        (-(-shape.out_channels // choice.block_n) * shared_by, 1, 1),
        (x, weight, *affine.vectors, residual, out, shape.rows, shared_by),
        constants,
        warps=choice.warps,
        stages=choice.stages,
    )
