"""When our ops may run a described block, and on which weights.

``BlockRunner`` decides (``usable``) and computes (``run``): on a CPU with folded weights that are
looked at before every use, elsewhere with the live ones. While a graph is traced
(``torch.compile``, ``torch.export``) the weights come from inside the graph, so that a compiled
model is never stale either.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._torch import FakeTensor, below_autograd, is_exporting, is_transformed, is_watched
from ..blocks import Block, leaves_of, plus_input
from ..engines import onednn
from .folding import FoldedWeights, fold
from .freshness import PLAIN_TENSORS
from .live import Parts, live
from .look import Look, look_for
from .sequences import SEQUENCES, Sequence, Weights
from .structure import Watch

DISPATCHED = torch.ops.effv2
TRITON = torch.ops.effv2_triton


def _gate_in_place(x: Tensor, gate: Tensor, *rest: Any) -> Tensor:
    """``gated_project`` on a CPU for a map that nobody else holds: saves the gated copy."""
    weight, bias, norm, eps, residual, act = rest
    x.mul_(gate[:, :, None, None])
    return onednn.conv(x, weight, bias, norm, eps, act=act, residual=residual)


# The CPU implementations themselves, for calls that nobody watches and that were checked before.
_CPU = {name: op.cpu for name, op in ops.OPS.items()} | {"gated_project": _gate_in_place}
DIRECT = SimpleNamespace(**{name: SimpleNamespace(default=f) for name, f in _CPU.items()})

_DEVICES = ("cpu", "cuda", "meta")
_MOST_SHAPES = 64


class BlockRunner:
    """Runs one block on our ops. ``watched`` are the modules whose own forward is bypassed (the
    block's descendants): they must be as they were when the block was described, in eval mode and
    free of hooks, or the original forward runs. ``triton``: the ops are those of Triton."""

    def __init__(self, block: Block, watched: Watch, triton: bool = False):
        self.block = block
        self.branch = replace(block, residual=False)
        self.triton = triton
        self.folded = FoldedWeights(block)
        self.parts = Parts(block)
        self.watch = watched
        self.leaves = tuple(leaves_of(block))
        self.first_conv = next(leaf for leaf in self.leaves if isinstance(leaf, nn.Conv2d))
        # The engines of its ops, in order, by the kind of the arguments: on a GPU the dispatcher's
        # way into Python and back, the checks and the choice are much of a small op's host time.
        self._engines: dict[tuple, list[ops.Engine]] = {}

    def __getstate__(self) -> dict:
        return {**vars(self), "_engines": {}}  # which are of this process

    def usable(self, x: Tensor) -> bool:
        """Whether our ops give what the original forward would, here and now."""
        if not isinstance(x, Tensor) or x.dim() != 4 or records_gradient(x, self.leaves):
            return False
        if torch.compiler.is_compiling():
            return self._unchanged() and self.watch.traced() and self._dtype_agrees(x)
        return (
            type(x) in PLAIN_TENSORS
            and not is_transformed()
            and (look_for(self) is not None or self.watch.unchanged())
            and self._dtype_agrees(x)
        )

    @torch.compiler.assume_constant_result
    def _unchanged(self) -> bool:
        return self.watch.unchanged()

    def _dtype_agrees(self, x: Tensor) -> bool:
        weight = self.first_conv.weight
        if (
            x.device.type not in _DEVICES
            or x.device != weight.device
            or (x.is_cuda and weight.dtype == torch.float64)
        ):
            return False
        if autocasts(x.device.type):
            return weight.dtype != torch.float64 and x.dtype != torch.float64
        return x.dtype == weight.dtype

    def run(self, x: Tensor, sequence: Sequence | None = None) -> Tensor:
        """x: (N, C, H, W) in any memory format -> (N, O, H', W'), channels_last."""
        sequence = sequence or SEQUENCES[type(self.block)]
        device = x.device.type
        autocast = autocasts(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        if torch.compiler.is_compiling() or isinstance(x, FakeTensor) or device == "meta":
            if device == "meta" and not torch.compiler.is_compiling():
                self.folded.clear()  # of the CPU that the model came from
            named = TRITON if self.triton else DISPATCHED
            return self._apply(named, sequence, self._traced(x, dtype), x, dtype)
        weights = self._weights(x, dtype, look_for(self))
        key = (sequence, *_signature(x, weights)) if x.is_cuda else ()
        noted: list[ops.Engine] = []
        effv2 = self._ops(weights, key, noted)
        with below_autograd():
            if not autocast:
                found = self._apply(effv2, sequence, weights, x, dtype)
            else:
                with torch.autocast(device, enabled=False):
                    found = self._apply(effv2, sequence, weights, x, dtype)
        if noted:
            self._engines[key] = noted
        return found

    def _traced(self, x: Tensor, dtype: torch.dtype) -> Weights:
        """What the ops of a graph take: on a CPU the fold is part of it, and the compiler's to
        fuse."""
        return fold(self.block, dtype) if folds(x, self.triton) else live([self.parts], dtype)[0]

    def _weights(self, x: Tensor, dtype: torch.dtype, look: Look | None) -> Weights:
        if folds(x, self.triton):
            return self.folded.weights(x, dtype, None if look is None else look.stamp)
        self.folded.clear()  # of the CPU that the model came from
        if look is not None and look.dtype == dtype and self in look.live:
            return look.live[self]
        return live([self.parts], dtype)[0]

    def _ops(self, weights: Weights, key: tuple, noted: list[ops.Engine]) -> Any:
        """The namespace of ops: past the dispatcher and the checks where a call was checked. key:
        of a call on a GPU; noted: becomes the engines that are chosen for it."""
        if self.triton:
            return TRITON
        if weights.packed and not is_watched():
            return DIRECT
        if not key or is_watched():
            return DISPATCHED
        if key in self._engines:
            return ops.Replayed(self._engines[key])
        if len(self._engines) >= _MOST_SHAPES:
            return DISPATCHED

        def note(op: ops.Op, chosen: ops.Chosen) -> None:
            ops.tell(op, chosen)
            noted.append(chosen.engine)

        return ops.Engines(ops.OPS, "cuda", note, checks=True)

    def _apply(
        self, effv2: Any, sequence: Sequence, weights: Weights, x: Tensor, dtype: torch.dtype
    ) -> Tensor:
        if x.dtype == dtype or getattr(self.block, "is_stem", False):
            return sequence(effv2, self.block, weights, x)
        y = sequence(effv2, self.branch, weights, x.to(dtype))
        return plus_input(self.block, y, x) if self.block.residual else y


def folds(x: Tensor, triton: bool) -> bool:
    """Whether norms are folded for x: on a CPU, unless Triton interprets there what a GPU runs."""
    return x.device.type == "cpu" and not triton


def _signature(x: Tensor, weights: Weights) -> tuple:
    """Of what the ops check and engines are chosen by: where the arguments are, their shapes and
    their dtypes."""
    found: list[Any] = [x.device, x.dtype, x.shape]
    for conv in (weights.conv, weights.expand, weights.depthwise, weights.project):
        if conv is not None:
            weight, bias, norm, eps = conv
            found += (weight.device, weight.dtype, weight.shape, eps)
            found += (vector.shape for vector in norm)
            found += () if bias is None else (bias.shape,)
    found += () if weights.se is None else (tensor.shape for tensor in weights.se)
    return tuple(found)


def autocasts(device: str) -> bool:
    """Whether autocast is on; "meta" has none, and PyTorch raises where it is asked."""
    return device != "meta" and torch.is_autocast_enabled(device)


def records_gradient(x: Tensor, leaves: tuple[nn.Module, ...]) -> bool:
    """Whether autograd would record this forward. An exported program is for inference."""
    if not torch.is_grad_enabled() or is_exporting():
        return False
    if x.requires_grad:
        return True
    for leaf in leaves:
        for parameter in leaf._parameters.values():
            if parameter is not None and parameter.requires_grad:
                return True
    return False
