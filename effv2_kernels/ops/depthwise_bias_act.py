"""``depthwise_bias_act``: depthwise convolution + bias + activation, and the squeeze (the mean over
H x W that squeeze-and-excite asks for) of the result."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..engines import aten as on_any
from ..engines import native
from ..engines import onednn as on_cpu
from . import _contract
from ._contract import Norm
from ._library import register
from ._op import Op, by_aten, by_onednn, native_kernel, triton_kernel

SCHEMA = (
    "depthwise_bias_act(Tensor x, Tensor weight, Tensor? bias, Tensor[] norm, float eps, "
    "int[] stride, int[] padding, str act, bool squeeze) -> (Tensor, Tensor)"
)
NAME = "depthwise_bias_act"


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    squeeze: bool,
) -> None:
    _contract.check_map(NAME, "x", x)
    _contract.check_conv(NAME, x, weight, bias, norm, eps, 1)
    if weight.shape[0] != x.shape[1]:
        _contract.fail(NAME, f"weight is for {weight.shape[0]} channels, x has {x.shape[1]}")
    _contract.check_window(NAME, x, weight, stride, padding)
    _contract.check_act(NAME, act)


def fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    squeeze: bool,
) -> tuple[Tensor, Tensor]:
    size = _contract.out_size(x, weight, stride, padding)
    y = _contract.empty_map(x, x.shape[1], *size)
    return y, x.new_empty((x.shape[0], x.shape[1] if squeeze else 0))


def aten(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    squeeze: bool,
) -> tuple[Tensor, Tensor]:
    """x: (N, C, H, W); weight: (C, 1, k, k); bias, norm, eps: as in ``ops/__init__``. Returns
    y: (N, C, H', W'), channels_last, and its mean over H' x W': (N, C), or (N, 0) without
    ``squeeze``."""
    y = on_any.conv(x, weight, bias, norm, eps, stride, padding, act, groups=weight.shape[0])
    return y, on_any.mean(y) if squeeze else y.new_empty((y.shape[0], 0))


def cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
    squeeze: bool,
) -> tuple[Tensor, Tensor]:
    y = on_cpu.conv(x, weight, bias, norm, eps, stride, padding, act, groups=weight.shape[0])
    return y, on_any.mean(y) if squeeze else y.new_empty((y.shape[0], 0))


OP = Op(
    NAME,
    SCHEMA,
    check,
    fake,
    engines=(
        native_kernel(native.depthwise_bias_act, native.why_not_depthwise),
        triton_kernel("depthwise_bias_act"),
        by_onednn(cpu),
        by_aten(aten),
    ),
)
register(OP)
