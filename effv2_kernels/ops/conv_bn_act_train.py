"""``conv_bn_act_train``: convolution, batch norm and activation, in training: stem, head and the
Fused-MBConv of expansion 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..engines.training import Chain, Stage
from ._training import TrainingOp, convolution, register

ARGUMENTS = f"{convolution()}, Tensor? mask, bool residual, int[] stride, int[] padding, str act"


def chain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    affine: Sequence[Tensor],
    frozen: Sequence[Tensor],
    eps: float,
    mask: Tensor | None,
    residual: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Chain:
    stage = Stage(weight, bias, affine, frozen, eps, stride, padding, act)
    return Chain((stage,), None, mask, residual)


OP = TrainingOp("conv_bn_act_train", ARGUMENTS, chain)
register(OP)
