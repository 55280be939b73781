"""``fused_mbconv_train``: Fused-MBConv in training: k x k expand, optional squeeze-and-excite, 1x1
project (paper, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..engines.training import Chain, Gate, Stage
from ._training import POINTWISE, TrainingOp, convolution, register

ARGUMENTS = (
    f"{convolution('expand_')}, {convolution('project_')}, Tensor[] gate, Tensor? mask, "
    "bool residual, int[] stride, int[] padding, str expand_act, str project_act, str gate_act, "
    "str gate_function"
)


def chain(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    expand_affine: Sequence[Tensor],
    expand_frozen: Sequence[Tensor],
    expand_eps: float,
    project_weight: Tensor,
    project_bias: Tensor | None,
    project_affine: Sequence[Tensor],
    project_frozen: Sequence[Tensor],
    project_eps: float,
    gate: Sequence[Tensor],
    mask: Tensor | None,
    residual: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    expand_act: str,
    project_act: str,
    gate_act: str,
    gate_function: str,
) -> Chain:
    expand = expand_weight, expand_bias, expand_affine, expand_frozen, expand_eps
    project = project_weight, project_bias, project_affine, project_frozen, project_eps
    stages = (
        Stage(*expand, stride, padding, expand_act),
        Stage(*project, *POINTWISE, project_act),
    )
    return Chain(stages, Gate(gate, gate_act, gate_function) if gate else None, mask, residual)


OP = TrainingOp("fused_mbconv_train", ARGUMENTS, chain)
register(OP)
