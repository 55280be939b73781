"""The passes in the C++ of csrc/cpu, on float32, bfloat16 and float64 maps: one reading of every
map where an operator of PyTorch's for each step would have several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .aten import wide_dtype

NATIVE: Any = torch.ops.effv2_cpu


def coefficients(
    y: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    eps: float,
) -> Tensor:
    if mean is None or variance is None:
        mean = variance = None
    vectors = [_wide(vector, y) for vector in (gamma, beta, mean, variance)]
    return NATIVE.coefficients.default(y, *vectors, eps)


def bn_act(
    y: Tensor,
    coefficients: Tensor,
    act: str,
    gate: Tensor | None = None,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    return NATIVE.bn_act.default(y, coefficients, act, _dense(gate), _dense(mask), residual)


def act_mean(y: Tensor, coefficients: Tensor, act: str) -> Tensor:
    return NATIVE.act_mean.default(y, coefficients, act)


def bn_act_backward(
    grad: Tensor,
    y: Tensor,
    coefficients: Tensor,
    gamma: Tensor | None,
    act: str,
    mask: Tensor | None,
    batch: bool,
    out: Tensor | None,
) -> Tensor:
    return NATIVE.bn_act_backward.default(*(grad, y, coefficients, act, _dense(mask), batch, out))


def gated_sums(grad: Tensor, y: Tensor, coefficients: Tensor, act: str) -> Tensor:
    return NATIVE.gated_sums.default(grad, y, coefficients, act)


def gated_backward(
    grad: Tensor,
    y: Tensor,
    coefficients: Tensor,
    gamma: Tensor | None,
    act: str,
    sums: Tensor,
    gate: Tensor,
    dmean: Tensor,
    batch: bool,
    out: Tensor | None,
) -> Tensor:
    return NATIVE.gated_backward.default(
        *(grad, y, coefficients, act, sums, _dense(gate), _dense(dmean), batch, out)
    )


def _wide(vector: Tensor | None, y: Tensor) -> Tensor | None:
    """Detached: the op knows no derivative."""
    return None if vector is None else _dense(vector.detach().to(wide_dtype(y)))


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
