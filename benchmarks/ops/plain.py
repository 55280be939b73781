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
    bias: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    act: str = "none",
) -> Tensor:
    top, bottom, left, right = padding
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    groups = x.shape[1] // weight.shape[1]
    y = F.conv2d(x, weight, bias.to(x.dtype), tuple(stride), (top, left), groups=groups)
    return FUNCTIONS[act](y)


def stem(x, weight, bias, stride, padding, act):
    return _conv(x.to(weight.dtype), weight, bias, stride, padding, act)


def conv_bias_act(x, weight, bias, residual, stride, padding, act):
    y = _conv(x, weight, bias, stride, padding, act)
    return y if residual is None else y + residual


def fused_mbconv(x, expand, expand_bias, project, project_bias, residual, stride, padding, act):
    y = _conv(_conv(x, expand, expand_bias, stride, padding, act), project, project_bias)
    return y + x if residual else y


def depthwise_bias_act(x, weight, bias, stride, padding, act, squeeze):
    y = _conv(x, weight, bias, stride, padding, act)
    return (y, y.mean((2, 3))) if squeeze else (y,)


def expand_depthwise(x, expand, expand_bias, weight, bias, stride, padding, act, squeeze):
    hidden = _conv(x, expand, expand_bias, act=act)
    return depthwise_bias_act(hidden, weight, bias, stride, padding, act, squeeze)


def squeeze_excite_gate(pooled, reduce, reduce_bias, expand, expand_bias, act, gate):
    hidden = FUNCTIONS[act](F.linear(pooled, reduce, reduce_bias))
    return FUNCTIONS[gate](F.linear(hidden, expand, expand_bias))


def gated_project(x, gate, weight, bias, residual, act):
    y = _conv(x * gate[:, :, None, None], weight, bias, act=act)
    return y if residual is None else y + residual


def conv_act_pool(x, weight, bias, act):
    return torch.mean(_conv(x, weight, bias, act=act), (2, 3))
