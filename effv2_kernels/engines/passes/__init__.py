"""What training computes between convolutions, on a CPU: passes over maps.

Maps are (N, C, H, W), channels_last, all of a call in one dtype. "Wide" is float32, or float64 of
float64 maps. ``coefficients`` is (5, C) in wide: mean, biased variance, 1 / sqrt(variance + eps),
scale = gamma / sqrt(variance + eps), shift = beta - mean scale; z = scale y + shift. Notation and
formulas: ``z``, ``p`` = act'(z) and S1, S2, the sums of dz and of dz (y - mean), by which

    dgamma = S2 / sqrt(variance + eps), dbeta = S1
    dy = scale (dz - S1 / M - (y - mean) S2 / (M (variance + eps))), M = N H W

(Ioffe and Szegedy, 2015, section 3), or dy = scale dz where the statistics are no batch's.

    coefficients(y, gamma, beta, mean, variance, eps)       of y's own statistics if mean is None
    bn_act(y, coefficients, act, gate, mask, residual)      act(z) gate mask + residual
    act_mean(y, coefficients, act)                          (N, C), in y's dtype: mean of act(z)
    bn_act_backward(grad, y, coefficients, gamma, act, mask, batch, out)
                                                            (2, C): dgamma, dbeta;
                                                            dz = grad mask p
    gated_sums(grad, y, coefficients, act)                  (5, N, C): sums over H x W of
                                                            grad act(z), grad p,
                                                            grad p (y - mean), p, p (y - mean)
    gated_backward(grad, y, coefficients, gamma, act, sums, gate, dmean, batch, out)
                                                            (2, C), of dz = (grad gate + dmean) p

gamma, beta, mean, variance: (C,) of any dtype, or None. gate: (N, C) and mask: (N,), in y's dtype;
dmean: (N, C) in wide. batch: whether the statistics are y's own. out: takes dy, and may be grad
itself; None where nobody wants dy.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn

from ... import _native
from . import aten, native

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def for_map(y: Tensor) -> ModuleType:
    """The module whose passes are for ``y``: ``native`` for a real CPU map of a dtype that it
    has, where it was compiled and loaded, else ``aten``."""
    # Not of a subclass: a fake tensor has no data.
    real = type(y) in (Tensor, nn.Parameter) and y.device.type == "cpu"
    return native if real and y.dtype in _DTYPES and why_not_compiled() is None else aten


def why_not_compiled() -> str | None:
    """Why all maps go through ``aten``; None where the compiled passes are loaded."""
    status = _native.load_cpu()
    return None if status.loaded else f"the compiled passes are not loaded: {status.reason}"
