"""What each operator computes, in the PyTorch that a user would write: same arguments, any dtype
and memory format. It is what the operators are timed against, and, in float64, checked against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from effv2_kernels.activations import FUNCTIONS


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Sequence[Tensor],
    eps: float,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    act: str = "none",
) -> Tensor:
    top, bottom, left, right = padding
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    groups = x.shape[1] // weight.shape[1]
    y = F.conv2d(x, weight, bias, tuple(stride), (top, left), groups=groups)
    return FUNCTIONS[act](F.batch_norm(y, *norm, eps=eps) if norm else y)


# ``conv``, ``expand`` and the like below are four arguments each: weight, bias, norm, eps.


def stem(x, *rest):
    *conv, stride, padding, act = rest
    return _conv(x.to(conv[0].dtype), *conv, stride, padding, act)


def conv_bias_act(x, *rest):
    *conv, residual, stride, padding, act = rest
    y = _conv(x, *conv, stride, padding, act)
    return y if residual is None else y + residual


def fused_mbconv(x, *rest):
    *both, residual, stride, padding, act = rest
    expand, project = both[:4], both[4:]
    y = _conv(_conv(x, *expand, stride, padding, act), *project)
    return y + x if residual else y


def depthwise_bias_act(x, *rest):
    *conv, stride, padding, act, squeeze = rest
    y = _conv(x, *conv, stride, padding, act)
    return (y, y.mean((2, 3))) if squeeze else (y,)


def expand_depthwise(x, *rest):
    *both, stride, padding, act, squeeze = rest
    expand, depthwise = both[:4], both[4:]
    hidden = _conv(x, *expand, act=act)
    return depthwise_bias_act(hidden, *depthwise, stride, padding, act, squeeze)


def squeeze_excite_gate(pooled, reduce, reduce_bias, expand, expand_bias, act, gate):
    hidden = FUNCTIONS[act](F.linear(pooled, reduce, reduce_bias))
    return FUNCTIONS[gate](F.linear(hidden, expand, expand_bias))


def gated_project(x, gate, *rest):
    *conv, residual, act = rest
    y = _conv(x * gate[:, :, None, None], *conv, act=act)
    return y if residual is None else y + residual


def conv_act_pool(x, *rest):
    *conv, act = rest
    return torch.mean(_conv(x, *conv, act=act), (2, 3))
