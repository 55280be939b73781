"""``expand_depthwise``: 1x1 expand + bias + activation + depthwise + bias + activation (+ squeeze):
the first half of an MBConv block, its first expanded tensor private to the op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..engines import aten as on_any
from ..engines import native
from ..engines import onednn as on_cpu
from . import _contract
from ._contract import Norm
from ._library import register
from ._op import Op, by_aten, by_onednn, native_kernel, two_ops

SCHEMA = (
    "expand_depthwise(Tensor x, Tensor expand_weight, Tensor? expand_bias, Tensor[] expand_norm, "
    "float expand_eps, Tensor depthwise_weight, Tensor? depthwise_bias, Tensor[] depthwise_norm, "
    "float depthwise_eps, int[] stride, int[] padding, str act, bool squeeze) -> (Tensor, Tensor)"
)
NAME = "expand_depthwise"


def check(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    expand_norm: Norm,
    expand_eps: float,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    depthwise_norm: Norm,
    depthwise_eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    squeeze: bool,
) -> None:
    _contract.check_map(NAME, "x", x)
    _contract.check_conv(
        NAME,
        x,
        expand_weight,
        expand_bias,
        expand_norm,
        expand_eps,
        x.shape[1],
        "expand_",
        kernel=1,
    )
    _contract.check_conv(
        NAME, x, depthwise_weight, depthwise_bias, depthwise_norm, depthwise_eps, 1, "depthwise_"
    )
    expanded, depthwise = expand_weight.shape[0], depthwise_weight.shape[0]
    if expanded != depthwise:
        _contract.fail(NAME, f"expand gives {expanded} channels, depthwise takes {depthwise}")
    _contract.check_window(NAME, x, depthwise_weight, stride, padding)
    _contract.check_act(NAME, act)


def fake(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    expand_norm: Norm,
    expand_eps: float,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    depthwise_norm: Norm,
    depthwise_eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    squeeze: bool,
) -> tuple[Tensor, Tensor]:
    size = _contract.out_size(x, depthwise_weight, stride, padding)
    channels = depthwise_weight.shape[0]
    y = _contract.empty_map(x, channels, *size)
    return y, x.new_empty((x.shape[0], channels if squeeze else 0))


def aten(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    expand_norm: Norm,
    expand_eps: float,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    depthwise_norm: Norm,
    depthwise_eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    squeeze: bool,
) -> tuple[Tensor, Tensor]:
    """x: (N, I, H, W); expand_weight: (E, I, 1, 1); depthwise_weight: (E, 1, k, k); biases, norms
    and eps: as in ``ops/__init__``. The padding is of the *expanded* tensor: outside the map it is
    0, not what the expansion makes of 0. Returns y: (N, E, H', W'), channels_last, and its mean
    over H' x W': (N, E), or (N, 0) without ``squeeze``."""
    hidden = on_any.conv(x, expand_weight, expand_bias, expand_norm, expand_eps, act=act)
    groups = depthwise_weight.shape[0]
    y = on_any.conv(
        hidden,
        depthwise_weight,
        depthwise_bias,
        depthwise_norm,
        depthwise_eps,
        stride,
        padding,
        act,
        groups,
    )
    return y, on_any.mean(y) if squeeze else y.new_empty((y.shape[0], 0))


def two(effv2: Any, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The same by two ops, the expanded tensor in memory between them."""
    expand, depthwise, (stride, padding, act, squeeze) = rest[:4], rest[4:8], rest[8:]
    hidden = effv2.conv_bias_act.default(x, *expand, None, (1, 1), (0, 0, 0, 0), act)
    return effv2.depthwise_bias_act.default(hidden, *depthwise, stride, padding, act, squeeze)


def cpu(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    expand_norm: Norm,
    expand_eps: float,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    depthwise_norm: Norm,
    depthwise_eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    squeeze: bool,
) -> tuple[Tensor, Tensor]:
    hidden = on_cpu.conv(x, expand_weight, expand_bias, expand_norm, expand_eps, act=act)
    groups = depthwise_weight.shape[0]
    y = on_cpu.conv(
        hidden,
        depthwise_weight,
        depthwise_bias,
        depthwise_norm,
        depthwise_eps,
        stride,
        padding,
        act,
        groups,
    )
    return y, on_any.mean(y) if squeeze else y.new_empty((y.shape[0], 0))


OP = Op(
    NAME,
    SCHEMA,
    check,
    fake,
    engines=(
        native_kernel(native.expand_depthwise, native.why_not_expand_depthwise),
        two_ops(two),
        by_onednn(cpu),
        by_aten(aten),
    ),
)
register(OP)
