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
                                                            (2, C): dgamma, dbeta, of dz = grad mask p
    gated_sums(grad, y, coefficients, act)                  (5, N, C): sums over H x W of grad act(z),
                                                            grad p, grad p (y - mean), p, p (y - mean)
    gated_backward(grad, y, coefficients, gamma, act, sums, gate, dmean, batch, out)
                                                            (2, C), of dz = (grad gate + dmean) p

gamma, beta, mean, variance: (C,) of any dtype, or None. gate: (N, C) and mask: (N,), in y's dtype;
dmean: (N, C) in wide. batch: whether the statistics are y's own. out: takes dy, and may be grad
itself; None where nobody wants dy.
"""

from types import ModuleType

from torch import Tensor

from . import aten


def for_map(y: Tensor) -> ModuleType:
    """Who computes the passes over maps such as y."""
    return aten


def why_not_compiled() -> str | None:
    """Why ATen computes them."""
    return "they are not built"
