"""``conv_act_pool``: the head, 1x1 convolution + bias + activation + global mean."""

from __future__ import annotations

from torch import Tensor

from ..engines import aten as on_any
from ..engines import onednn as on_cpu
from . import _contract
from ._contract import Norm
from ._library import register
from ._op import Op, by_aten, by_onednn, triton_kernel

SCHEMA = (
    "conv_act_pool(Tensor x, Tensor weight, Tensor? bias, Tensor[] norm, float eps, str act) "
    "-> Tensor"
)
NAME = "conv_act_pool"


def check(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm, eps: float, act: str) -> None:
    _contract.check_map(NAME, "x", x)
    _contract.check_conv(NAME, x, weight, bias, norm, eps, x.shape[1], kernel=1)
    _contract.check_act(NAME, act)


def fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm, eps: float, act: str
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def aten(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm, eps: float, act: str
) -> Tensor:
    """x: (N, I, H, W); weight: (O, I, 1, 1); bias, norm, eps: as in ``ops/__init__``. Returns
    the mean over H x W of act(norm(conv(x))): (N, O)."""
    return on_any.mean(on_any.conv(x, weight, bias, norm, eps, act=act))


def cpu(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm, eps: float, act: str) -> Tensor:
    return on_any.mean(on_cpu.conv(x, weight, bias, norm, eps, act=act))


OP = Op(
    NAME,
    SCHEMA,
    check,
    fake,
    engines=(
        triton_kernel("conv_act_pool"),
        by_onednn(cpu),
        by_aten(aten),
    ),
)
register(OP)
