"""``conv_bias_act``: dense k x k convolution + bias + activation (+ residual)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..engines import aten as on_any
from ..engines import onednn as on_cpu
from . import _contract
from ._contract import Norm
from ._library import register
from ._op import Op, by_aten, by_onednn, triton_kernel

SCHEMA = (
    "conv_bias_act(Tensor x, Tensor weight, Tensor? bias, Tensor[] norm, float eps, "
    "Tensor? residual, int[] stride, int[] padding, str act) -> Tensor"
)
NAME = "conv_bias_act"


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> None:
    _contract.check_map(NAME, "x", x)
    _contract.check_conv(NAME, x, weight, bias, norm, eps, x.shape[1])
    _contract.check_window(NAME, x, weight, stride, padding)
    _contract.check_act(NAME, act)
    shape = (x.shape[0], weight.shape[0], *_contract.out_size(x, weight, stride, padding))
    _contract.check_residual(NAME, residual, shape, x)


def fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    return _contract.empty_map(x, weight.shape[0], *_contract.out_size(x, weight, stride, padding))


def aten(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    """x: (N, I, H, W); weight: (O, I, kh, kw); bias, norm, eps: as in ``ops/__init__``;
    residual: (N, O, H', W') or None, added after the activation. Returns (N, O, H', W'),
    channels_last."""
    return on_any.conv(x, weight, bias, norm, eps, stride, padding, act, residual=residual)


def cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    return on_cpu.conv(x, weight, bias, norm, eps, stride, padding, act, residual=residual)


OP = Op(
    NAME,
    SCHEMA,
    check,
    fake,
    engines=(
        triton_kernel("conv_bias_act"),
        by_onednn(cpu),
        by_aten(aten),
    ),
)
register(OP)
