"""``squeeze_excite_gate``: FC + activation + FC + sigmoid on the squeezed map, one launch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..activations import FUNCTIONS, GATES
from ..engines import native
from . import _contract
from ._library import register
from ._op import Op, by_aten, native_kernel

SCHEMA = (
    "squeeze_excite_gate(Tensor pooled, Tensor reduce_weight, Tensor reduce_bias, "
    'Tensor expand_weight, Tensor expand_bias, str act="silu", str gate="sigmoid") -> Tensor'
)
NAME = "squeeze_excite_gate"


def check(
    pooled: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    act: str = "silu",
    gate: str = "sigmoid",
) -> None:
    if pooled.dim() != 2:
        _contract.fail(NAME, f"pooled must be (N, M), got {pooled.dim()} dimensions")
    _contract.check_floating(NAME, "pooled", pooled)
    if reduce_weight.dim() != 2:
        _contract.fail(NAME, f"reduce_weight must be (R, M), got {reduce_weight.dim()} dimensions")
    hidden, channels = reduce_weight.shape[0], pooled.shape[1]
    named = {
        "reduce_weight": (reduce_weight, (hidden, channels)),
        "reduce_bias": (reduce_bias, (hidden,)),
        "expand_weight": (expand_weight, (channels, hidden)),
        "expand_bias": (expand_bias, (channels,)),
    }
    for name, (tensor, shape) in named.items():
        if tuple(tensor.shape) != shape:
            _contract.fail(NAME, f"{name} must be {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != pooled.dtype:
            _contract.fail(NAME, f"{name} is {tensor.dtype}, pooled is {pooled.dtype}")
        _contract.check_device(NAME, pooled, **{name: tensor})
    _contract.check_act(NAME, act)
    _contract.check_act(NAME, gate, GATES, "gate")


def fake(
    pooled: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    act: str = "silu",
    gate: str = "sigmoid",
) -> Tensor:
    return pooled.new_empty(pooled.shape)


def aten(
    pooled: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    act: str = "silu",
    gate: str = "sigmoid",
) -> Tensor:
    """pooled: (N, M); reduce_weight: (R, M), reduce_bias: (R,); expand_weight: (M, R),
    expand_bias: (M,); all of one dtype. Returns the gate, (N, M), in (0, 1)."""
    hidden = FUNCTIONS[act](F.linear(pooled, reduce_weight, reduce_bias))
    return FUNCTIONS[gate](F.linear(hidden, expand_weight, expand_bias))


OP = Op(
    NAME,
    SCHEMA,
    check,
    fake,
    engines=(
        native_kernel(native.squeeze_excite_gate, native.why_not_gate),
        by_aten(aten),
    ),
)
register(OP)
