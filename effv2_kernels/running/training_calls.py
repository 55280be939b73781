"""A block -> its training op, but for the tensors: what the autograd Function of a block holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._torch import is_watched
from ..blocks import Block, ConvBNAct, FusedMBConv, MBConv, SqueezeExcite, convs_of
from ..ops import TRAINING_OPS

#: Of a convolution with its norm: weight, bias, gamma, beta; mean and variance of a frozen norm.
SLOTS = 6
_ABSENT: tuple[Any, ...] = (None, None, [], [], 0.0)


@dataclass(frozen=True)
class Call:
    """eps: of each convolution's norm; gated: whether the op takes a gate; skips: whether the op
    takes another convolution, which this block has not; geometry: what follows the mask."""

    name: str
    eps: tuple[float, ...]
    gated: bool
    geometry: tuple[Any, ...]
    skips: bool = False

    @property
    def convs(self) -> int:
        return len(self.eps)

    def forward(self, x: Tensor, mask: Tensor | None, parameters: Sequence[Any]) -> list[Tensor]:
        """parameters: SLOTS of each convolution in turn, then the gate's four. The output and what
        is kept, as ``ops/_training.py`` says."""
        op = TRAINING_OPS[self.name]
        run = op.direct if _is_plain(x) else getattr(torch.ops.effv2, op.name).default
        return run(x, *self._arguments(parameters, mask))

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        mask: Tensor | None,
        parameters: Sequence[Any],
        kept: Sequence[Tensor],
        wanted: Sequence[bool],
    ) -> list[Tensor]:
        """wanted: of x and of each of ``parameters``, of which those of norms in evaluation have
        none; the gradients that are."""
        op = TRAINING_OPS[self.name]
        name = f"{op.name}_backward"
        run = op.direct_backward if _is_plain(grad) else getattr(torch.ops.effv2, name).default
        of_x, *rest = wanted
        flags = [of_x]
        for i in range(self.convs):
            flags += rest[SLOTS * i : SLOTS * i + 4]
        flags += rest[SLOTS * self.convs :]
        return run(grad, x, *self._arguments(parameters, mask), list(kept), flags)

    def _arguments(self, parameters: Sequence[Any], mask: Tensor | None) -> list[Any]:
        found: list[Any] = [*_ABSENT] if self.skips else []
        for i, eps in enumerate(self.eps):
            weight, bias, *pairs = parameters[SLOTS * i : SLOTS * (i + 1)]
            affine, frozen = pairs[:2], pairs[2:]
            found += (weight, bias, _there(affine), _there(frozen), eps)
        if self.gated:
            found.append(list(parameters[SLOTS * self.convs :]))
        return [*found, mask, *self.geometry]


def _is_plain(x: Tensor) -> bool:
    """Whether nobody is to see the op itself: no trace, no profiler, no dispatch mode. The
    dispatcher and its way back into Python are then saved."""
    return not torch.compiler.is_compiling() and type(x) is Tensor and not is_watched()


def _there(pair: Sequence[Tensor | None]) -> list[Tensor]:
    return [vector for vector in pair if vector is not None]


def _conv_bn_act(block: ConvBNAct) -> Call:
    conv = block.conv
    return Call(
        "conv_bn_act_train",
        _eps(block),
        False,
        (block.residual, conv.stride, conv.padding, conv.act),
    )


def _fused_mbconv(block: FusedMBConv) -> Call:
    expand = block.expand
    acts = expand.act, block.project.act, *_gate_acts(block.se)
    return Call(
        "fused_mbconv_train",
        _eps(block),
        True,
        (block.residual, expand.stride, expand.padding, *acts),
    )


def _mbconv(block: MBConv) -> Call:
    expand, depthwise = block.expand, block.depthwise
    acts = (
        "none" if expand is None else expand.act,
        depthwise.act,
        block.project.act,
        *_gate_acts(block.se),
    )
    return Call(
        "mbconv_train",
        _eps(block),
        True,
        (block.residual, depthwise.stride, depthwise.padding, *acts),
        skips=expand is None,
    )


def _eps(block: Block) -> tuple[float, ...]:
    return tuple(part.norm.eps for _, part in convs_of(block))


def _gate_acts(se: SqueezeExcite | None) -> tuple[str, str]:
    return ("none", "sigmoid") if se is None else (se.act, se.gate)


CALLS: dict[type, Callable[[Any], Call]] = {
    ConvBNAct: _conv_bn_act,
    FusedMBConv: _fused_mbconv,
    MBConv: _mbconv,
}
