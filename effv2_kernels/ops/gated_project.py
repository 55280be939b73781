"""``gated_project``: 1x1 projection of a map times its gate, + bias + activation (+ residual)."""

from __future__ import annotations

from torch import Tensor

from ..engines import aten as on_any
from ..engines import onednn as on_cpu
from . import _contract
from ._contract import Norm
from ._library import register
from ._op import Op, by_aten, by_onednn, triton_kernel

SCHEMA = (
    "gated_project(Tensor x, Tensor gate, Tensor weight, Tensor? bias, Tensor[] norm, float eps, "
    "Tensor? residual, str act) -> Tensor"
)
NAME = "gated_project"


def check(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    residual: Tensor | None,
    act: str,
) -> None:
    _contract.check_map(NAME, "x", x)
    _contract.check_conv(NAME, x, weight, bias, norm, eps, x.shape[1], kernel=1)
    if tuple(gate.shape) != (x.shape[0], x.shape[1]):
        expected = (x.shape[0], x.shape[1])
        _contract.fail(NAME, f"gate must be {expected}, got {tuple(gate.shape)}")
    _contract.check_dtype(NAME, "gate", gate, x.dtype)
    _contract.check_device(NAME, x, gate=gate)
    _contract.check_act(NAME, act)
    shape = (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    _contract.check_residual(NAME, residual, shape, x)


def fake(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    residual: Tensor | None,
    act: str,
) -> Tensor:
    return _contract.empty_map(x, weight.shape[0], x.shape[2], x.shape[3])


def aten(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    residual: Tensor | None,
    act: str,
) -> Tensor:
    """x: (N, E, H, W); gate: (N, E); weight: (O, E, 1, 1); bias, norm, eps: as in
    ``ops/__init__``; residual: (N, O, H, W) or None, added last. Returns (N, O, H, W),
    channels_last."""
    return on_any.conv(
        x * gate[:, :, None, None], weight, bias, norm, eps, act=act, residual=residual
    )


def cpu(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    residual: Tensor | None,
    act: str,
) -> Tensor:
    return on_cpu.conv(
        x * gate[:, :, None, None], weight, bias, norm, eps, act=act, residual=residual
    )


OP = Op(
    NAME,
    SCHEMA,
    check,
    fake,
    engines=(
        triton_kernel("gated_project"),
        by_onednn(cpu),
        by_aten(aten),
    ),
)
register(OP)
