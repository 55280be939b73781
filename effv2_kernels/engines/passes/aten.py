"""The passes in PyTorch's own operators: what is right, and what runs where none was compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...activations import FUNCTIONS

_ops = torch.ops.aten


def _none(grad: Tensor, z: Tensor) -> Tensor:
    return grad


#: (gradient of the activation's output, its input) -> gradient of its input.
BACKWARDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": _none,
    "silu": _ops.silu_backward.default,
    "relu": partial(_ops.threshold_backward.default, threshold=0),
    "relu6": partial(_ops.hardtanh_backward.default, min_val=0, max_val=6),
    "hardswish": _ops.hardswish_backward.default,
    "gelu": _ops.gelu_backward.default,
}


def wide_dtype(y: Tensor) -> torch.dtype:
    """In which statistics and sums are: float32, or float64 of a float64 map."""
    return torch.promote_types(y.dtype, torch.float32)


def coefficients(
    y: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    eps: float,
) -> Tensor:
    wide = wide_dtype(y)
    if mean is None or variance is None:
        # The running statistics only say in which dtype those of the batch come.
        nothing = y.new_zeros(2, y.shape[1], dtype=wide)
        mean, variance = _ops.batch_norm_update_stats.default(y, *nothing, 0.0)
    mean, variance = mean.to(wide), variance.to(wide)
    rstd = torch.rsqrt(variance + eps)
    scale = rstd if gamma is None else rstd * gamma.to(wide)
    shift = -mean * scale
    if beta is not None:
        shift = shift + beta.to(wide)
    return torch.stack((mean, variance, rstd, scale, shift))


def bn_act(
    y: Tensor,
    coefficients: Tensor,
    act: str,
    gate: Tensor | None = None,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    out = FUNCTIONS[act](_normed(y, coefficients))
    if gate is not None:
        out = out * gate[:, :, None, None]
    if mask is not None:
        out = out * mask[:, None, None, None]
    return out if residual is None else out + residual


def act_mean(y: Tensor, coefficients: Tensor, act: str) -> Tensor:
    return FUNCTIONS[act](_normed(y, coefficients)).mean((2, 3))


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
    if mask is not None:
        grad = grad * mask[:, None, None, None]
    return _backward(_through(grad, y, coefficients, act), y, coefficients, gamma, batch, out)


def gated_sums(grad: Tensor, y: Tensor, coefficients: Tensor, act: str) -> Tensor:
    wide = wide_dtype(y)
    z = _normed(y, coefficients)
    slope = BACKWARDS[act](torch.ones_like(z), z).to(wide)
    weighted, grad = grad.to(wide) * slope, grad.to(wide)
    centred = y.to(wide) - coefficients[0][:, None, None]
    products = grad * FUNCTIONS[act](z), weighted, weighted * centred, slope, slope * centred
    return torch.stack([product.sum((2, 3)) for product in products])


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
    grad = grad * gate[:, :, None, None] + dmean.to(grad.dtype)[:, :, None, None]
    return _backward(_through(grad, y, coefficients, act), y, coefficients, gamma, batch, out)


def _normed(y: Tensor, coefficients: Tensor) -> Tensor:
    """scale y + shift, in one pass."""
    mean, variance = torch.zeros_like(coefficients[0]), torch.ones_like(coefficients[0])
    of_norm = coefficients[3], coefficients[4], mean, variance
    return _ops.native_batch_norm.default(y, *of_norm, False, 0.0, 0.0)[0]


def _through(grad: Tensor, y: Tensor, coefficients: Tensor, act: str) -> Tensor:
    return grad if act == "none" else BACKWARDS[act](grad, _normed(y, coefficients))


def _backward(
    dz: Tensor,
    y: Tensor,
    coefficients: Tensor,
    gamma: Tensor | None,
    batch: bool,
    out: Tensor | None,
) -> Tensor:
    """Batch norm's own, of the gradient of its output."""
    mean, _, rstd, *_ = coefficients
    variance = rstd.square().reciprocal()  # with its eps
    gamma = torch.ones_like(mean) if gamma is None else gamma.to(mean.dtype)
    dy, dgamma, dbeta = _ops.native_batch_norm_backward(
        *(dz, y, gamma, mean, variance, mean, rstd, batch, 0.0, [out is not None, True, True])
    )
    if out is not None:
        out.copy_(dy)
    return torch.stack((dgamma, dbeta))
