"""``fused_mbconv``: k x k expand + bias + activation + 1x1 project + bias (+ input): a whole
Fused-MBConv block of the paper (figure 2), its expanded tensor private to the op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engines import aten as on_any
from ..engines import onednn as on_cpu
from ..engines import triton as triton_ops
from ..launch.targets import Target
from . import _contract
from ._contract import Norm
from ._library import register
from ._op import Op, by_aten, by_onednn, triton_kernel, two_ops

SCHEMA = (
    "fused_mbconv(Tensor x, Tensor expand_weight, Tensor? expand_bias, Tensor[] expand_norm, "
    "float expand_eps, Tensor project_weight, Tensor? project_bias, Tensor[] project_norm, "
    "float project_eps, bool residual, int[] stride, int[] padding, str act) -> Tensor"
)
NAME = "fused_mbconv"


def check(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    expand_norm: Norm,
    expand_eps: float,
    project_weight: Tensor,
    project_bias: Tensor | None,
    project_norm: Norm,
    project_eps: float,
    residual: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> None:
    _contract.check_map(NAME, "x", x)
    _contract.check_conv(
        NAME, x, expand_weight, expand_bias, expand_norm, expand_eps, x.shape[1], "expand_"
    )
    mid = expand_weight.shape[0]
    _contract.check_conv(
        NAME, x, project_weight, project_bias, project_norm, project_eps, mid, "project_", kernel=1
    )
    _contract.check_window(NAME, x, expand_weight, stride, padding)
    _contract.check_act(NAME, act)
    if residual:
        size = _contract.out_size(x, expand_weight, stride, padding)
        _contract.check_residual(NAME, x, (x.shape[0], project_weight.shape[0], *size), x)


def fake(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    expand_norm: Norm,
    expand_eps: float,
    project_weight: Tensor,
    project_bias: Tensor | None,
    project_norm: Norm,
    project_eps: float,
    residual: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    size = _contract.out_size(x, expand_weight, stride, padding)
    return _contract.empty_map(x, project_weight.shape[0], *size)


def aten(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    expand_norm: Norm,
    expand_eps: float,
    project_weight: Tensor,
    project_bias: Tensor | None,
    project_norm: Norm,
    project_eps: float,
    residual: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    """x: (N, C, H, W); expand_weight: (E, C, k, k); project_weight: (O, E, 1, 1); biases, norms
    and eps: as in ``ops/__init__``. ``residual`` adds x (stride 1 and O == C). Returns (N, O, H',
    W'), channels_last."""
    hidden = on_any.conv(
        x, expand_weight, expand_bias, expand_norm, expand_eps, stride, padding, act
    )
    return on_any.conv(
        hidden,
        project_weight,
        project_bias,
        project_norm,
        project_eps,
        residual=x if residual else None,
    )


def two(effv2: Any, x: Tensor, *rest: Any) -> Tensor:
    """The same by two ops, the expanded tensor in memory between them."""
    expand, project, (residual, stride, padding, act) = rest[:4], rest[4:8], rest[8:]
    hidden = effv2.conv_bias_act.default(x, *expand, None, stride, padding, act)
    skip = x if residual else None
    sides = (0, 0, 0, 0)
    return effv2.conv_bias_act.default(hidden, *project, skip, (1, 1), sides, "none")


def why_not_two(arguments: Sequence[Any], target: Target | None) -> str | None:
    """Only where Triton would compute it but for its size."""
    if not triton_ops.missing():
        why = triton_ops.WHY_NOT["fused_mbconv"](arguments, target)
        if why == triton_ops.TOO_LARGE:
            return None
    return "it is not the size that keeps the block from one kernel"


def images_at_a_time(
    x: Tensor, expand_weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> int:
    """How many images the CPU expands together."""
    height, width = _contract.out_size(x, expand_weight, stride, padding)
    per_image = expand_weight.shape[0] * height * width * x.element_size()
    return on_cpu.images_at_a_time(x.shape[0], per_image)


def cpu(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    expand_norm: Norm,
    expand_eps: float,
    project_weight: Tensor,
    project_bias: Tensor | None,
    project_norm: Norm,
    project_eps: float,
    residual: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    act: str,
) -> Tensor:
    """As many images at a time as keep the expanded tensor small: a large temporary goes back to
    the system at every call, and its pages are faulted in again at the next."""
    parts = []
    for part in x.split(images_at_a_time(x, expand_weight, stride, padding)):
        hidden = on_cpu.conv(
            part, expand_weight, expand_bias, expand_norm, expand_eps, stride, padding, act
        )
        skip = part if residual else None
        parts.append(
            on_cpu.conv(
                hidden, project_weight, project_bias, project_norm, project_eps, residual=skip
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


OP = Op(
    NAME,
    SCHEMA,
    check,
    fake,
    engines=(
        triton_kernel("fused_mbconv"),
        two_ops(two, why_not_two),
        by_onednn(cpu),
        by_aten(aten),
    ),
)
register(OP)
