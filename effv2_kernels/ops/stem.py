"""``stem``: the first convolution + bias + activation, from the image as the user has it."""

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
    "stem(Tensor x, Tensor weight, Tensor? bias, Tensor[] norm, float eps, int[] stride, "
    "int[] padding, str act) -> Tensor"
)
NAME = "stem"


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> None:
    _contract.check_map(NAME, "x", x)
    _contract.check_conv(NAME, x, weight, bias, norm, eps, x.shape[1], cast=True)
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
) -> Tensor:
    size = _contract.out_size(x, weight, stride, padding)
    return _contract.empty_map(x, weight.shape[0], *size, dtype=weight.dtype)


def aten(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    """x: (N, I, H, W) of any floating dtype, NCHW or NHWC; weight: (O, I, kh, kw); bias, norm,
    eps: as in ``ops/__init__``. Returns (N, O, H', W') in weight's dtype, channels_last."""
    return on_any.conv(x.to(weight.dtype), weight, bias, norm, eps, stride, padding, act)


def cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    return on_cpu.conv(x.to(weight.dtype), weight, bias, norm, eps, stride, padding, act)


OP = Op(
    NAME,
    SCHEMA,
    check,
    fake,
    engines=(
        native_kernel(native.stem, native.why_not_stem),
        triton_kernel("stem"),
        by_onednn(cpu),
        by_aten(aten),
    ),
)
register(OP)
