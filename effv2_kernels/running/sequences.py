"""A block -> its ops, as the paper draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ..blocks import Block, ConvBNAct, FusedMBConv, MBConv

#: A convolution as the ops take it: weight, bias, norm, eps.
Conv = tuple[Tensor, Tensor | None, tuple[Tensor, ...], float]
Gate = tuple[Tensor, Tensor, Tensor, Tensor]
_ABSENT: Any = None  # no sequence asks for what its block does not have


@dataclass(frozen=True)
class Weights:
    """What the ops of a block take: each convolution with its norm, live or folded, and the weights
    and biases of squeeze-and-excite. packed: for oneDNN, which no other engine reads."""

    conv: Conv = _ABSENT
    expand: Conv = _ABSENT
    depthwise: Conv = _ABSENT
    project: Conv = _ABSENT
    se: Gate = _ABSENT
    packed: bool = False


def conv_bn_act(effv2: Any, block: ConvBNAct, w: Weights, x: Tensor) -> Tensor:
    conv = block.conv
    if block.is_stem:
        return effv2.stem.default(x, *w.conv, conv.stride, conv.padding, conv.act)
    residual = x if block.residual else None
    return effv2.conv_bias_act.default(x, *w.conv, residual, conv.stride, conv.padding, conv.act)


def pooled_head(effv2: Any, block: ConvBNAct, w: Weights, x: Tensor) -> Tensor:
    return effv2.conv_act_pool.default(x, *w.conv, block.conv.act)


def fused_mbconv(effv2: Any, block: FusedMBConv, w: Weights, x: Tensor) -> Tensor:
    expand, project = block.expand, block.project
    if block.se is None and project.act == "none":
        return effv2.fused_mbconv.default(
            x, *w.expand, *w.project, block.residual, expand.stride, expand.padding, expand.act
        )
    y = effv2.conv_bias_act.default(x, *w.expand, None, expand.stride, expand.padding, expand.act)
    pooled = y.mean((2, 3)) if block.se is not None else None
    return _gate_and_project(effv2, block, w, y, pooled, x)


def mbconv(effv2: Any, block: MBConv, w: Weights, x: Tensor) -> Tensor:
    expand, depthwise = block.expand, block.depthwise
    squeeze = block.se is not None
    geometry = depthwise.stride, depthwise.padding, depthwise.act, squeeze
    if expand is None:
        y, pooled = effv2.depthwise_bias_act.default(x, *w.depthwise, *geometry)
    elif expand.act == depthwise.act:
        y, pooled = effv2.expand_depthwise.default(x, *w.expand, *w.depthwise, *geometry)
    else:
        y = effv2.conv_bias_act.default(
            x, *w.expand, None, expand.stride, expand.padding, expand.act
        )
        y, pooled = effv2.depthwise_bias_act.default(y, *w.depthwise, *geometry)
    return _gate_and_project(effv2, block, w, y, pooled, x)


def _gate_and_project(
    effv2: Any, block: MBConv | FusedMBConv, w: Weights, y: Tensor, pooled: Tensor | None, x: Tensor
) -> Tensor:
    residual = x if block.residual else None
    project, se = block.project, block.se
    if se is None:
        return effv2.conv_bias_act.default(
            y, *w.project, residual, project.stride, project.padding, project.act
        )
    gate = effv2.squeeze_excite_gate.default(pooled, *w.se, se.act, se.gate)
    return effv2.gated_project.default(y, gate, *w.project, residual, project.act)


Sequence = Callable[[Any, Any, Weights, Any], Any]
SEQUENCES: dict[type, Sequence] = {
    ConvBNAct: conv_bn_act,
    FusedMBConv: fused_mbconv,
    MBConv: mbconv,
}


def op_names(block: Block, *, pooled: bool = False) -> tuple[str, ...]:
    """The ops of the block's sequence, in order of execution; ``pooled``: of a head whose mean is
    fused."""
    sequence: Sequence = pooled_head if pooled else SEQUENCES[type(block)]
    called: list[str] = []
    nothing: Any = (None, None, (), 0.0)
    parts = dict.fromkeys(("conv", "expand", "depthwise", "project", "se"), nothing)
    sequence(_Names(called), block, Weights(**parts), _Anything())
    return tuple(called)


class _Names:
    """A namespace of ops that only notes which are called."""

    def __init__(self, called: list[str]):
        self._called = called

    def __getattr__(self, name: str) -> SimpleNamespace:
        def note(*_: Any) -> _Anything:
            self._called.append(name)
            return _Anything()

        return SimpleNamespace(default=note)


class _Anything:
    """What such an op returns: a map, or a map and its mean."""

    def __iter__(self) -> Iterator[_Anything]:
        return iter((self, self))

    def mean(self, axes: tuple[int, int]) -> _Anything:
        return self
