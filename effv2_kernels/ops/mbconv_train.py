"""``mbconv_train``: MBConv in training: 1x1 expand (None: expansion 1), depthwise, optional
squeeze-and-excite, 1x1 project (paper, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..engines.training import Chain, Gate, Stage
from ._training import POINTWISE, TrainingOp, convolution, register

ARGUMENTS = (
    f"{convolution('expand_', optional=True)}, {convolution('depthwise_')}, "
    f"{convolution('project_')}, Tensor[] gate, Tensor? mask, bool residual, int[] stride, "
    "int[] padding, str expand_act, str depthwise_act, str project_act, str gate_act, "
    "str gate_function"
)


def chain(
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    expand_affine: Sequence[Tensor],
    expand_frozen: Sequence[Tensor],
    expand_eps: float,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    depthwise_affine: Sequence[Tensor],
    depthwise_frozen: Sequence[Tensor],
    depthwise_eps: float,
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
    depthwise_act: str,
    project_act: str,
    gate_act: str,
    gate_function: str,
) -> Chain:
    depthwise = depthwise_weight, depthwise_bias, depthwise_affine, depthwise_frozen, depthwise_eps
    project = project_weight, project_bias, project_affine, project_frozen, project_eps
    stages: tuple[Stage, ...] = (
        Stage(*depthwise, stride, padding, depthwise_act),
        Stage(*project, *POINTWISE, project_act),
    )
    if expand_weight is not None:
        expand = expand_weight, expand_bias, expand_affine, expand_frozen, expand_eps
        stages = (Stage(*expand, *POINTWISE, expand_act), *stages)
    return Chain(stages, Gate(gate, gate_act, gate_function) if gate else None, mask, residual)


OP = TrainingOp("mbconv_train", ARGUMENTS, chain)
register(OP)
