"""Batch norm folded into convolutions, on a CPU, and kept there while nothing changes.

Folding: y = gamma (conv(x) - mean) / sqrt(var + eps) + beta is a convolution with the weight
gamma / sqrt(var + eps) times w. It is computed in float32 or wider whatever the model's dtype, and
rounded once.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..blocks import (
    Block,
    ConvNorm,
    FusedMBConv,
    SqueezeExcite,
    convs_of,
    gates_of,
    leaves_of,
    se_of,
)
from ..engines import aten, onednn
from ..ops._contract import out_size
from ..ops.fused_mbconv import images_at_a_time
from .freshness import Snapshot, Stamp
from .sequences import Conv, Gate, Weights

MAX_PACKED_SHAPES = 4
# How often a shape must come before it takes the place of another one: packing for ever new shapes
# in turn would cost more than it gains.
_PATIENCE = 16
_MAX_COUNTED_SHAPES = 64


def fold(block: Block, dtype: torch.dtype) -> Weights:
    """The block's weights for a computation in ``dtype``, from the modules as they are now: norms
    folded in; weights in ``dtype`` and channels_last, biases in float32 or wider."""
    folded: dict[str, Any] = {name: _fold_conv(part, dtype) for name, part in convs_of(block)}
    se = se_of(block)
    if se is not None:
        folded["se"] = _se_weights(se, dtype)
    return Weights(**folded)


def _fold_conv(part: ConvNorm, dtype: torch.dtype) -> Conv:
    conv, norm = part.conv, part.norm
    assert norm.running_mean is not None and norm.running_var is not None
    vectors = conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
    bias, *of_norm = (None if v is None else v.detach() for v in vectors)
    weight, shift = aten.folded(
        conv.weight.detach(), bias, of_norm, norm.eps, _fold_dtype(conv.weight, dtype)
    )
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    return weight, shift.to(torch.promote_types(dtype, torch.float32)), (), 0.0


def _fold_dtype(weight: Tensor, dtype: torch.dtype) -> torch.dtype:
    """float64 where it is cheap: folded once. Rounding a float32 scale, then a float32 weight,
    would add about a third to the error of a whole float32 network. A graph folds in every call."""
    folded_once = weight.device.type == "cpu" and not torch.compiler.is_compiling()
    return torch.float64 if folded_once or dtype == torch.float64 else torch.float32


def _se_weights(se: SqueezeExcite, dtype: torch.dtype) -> Gate:
    """Views of the live weights where the dtype allows it."""
    assert se.reduce.bias is not None and se.expand.bias is not None
    return (
        se.reduce.weight.detach().flatten(1).to(dtype),
        se.reduce.bias.detach().to(dtype),
        se.expand.weight.detach().flatten(1).to(dtype),
        se.expand.bias.detach().to(dtype),
    )


def pack_for_onednn(block: Block, weights: Weights, x: Tensor) -> Weights:
    """The same weights in the layouts that oneDNN prefers for inputs shaped like x."""
    shape = tuple(x.shape)
    packed: dict[str, Any] = {"se": weights.se, "packed": True}
    if isinstance(block, FusedMBConv) and block.se is None:
        expand = block.expand
        assert weights.expand is not None
        images = images_at_a_time(x, weights.expand[0], expand.stride, expand.padding)
        shape = (images, *shape[1:])
    for name, part in convs_of(block):
        weight, *rest = getattr(weights, name)
        stride, groups = part.stride, part.conv.groups
        layout = onednn.prepack(weight, shape, stride, part.padding, groups)
        packed[name] = (layout, *rest)
        size = out_size(torch.empty(shape, device="meta"), weight, stride, part.padding)
        shape = (shape[0], weight.shape[0], *size)
    return Weights(**packed)


class FoldedWeights:
    """What was folded of one block, looked at before every use; ``freshness`` says what is seen."""

    def __init__(self, block: Block):
        self._block = block
        self._leaves = tuple(leaves_of(block))
        self._gates = tuple(gates_of(block))
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {"_block": self._block}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["_block"])  # type: ignore[misc]

    def clear(self) -> None:
        self._snapshot = None

    def weights(self, x: Tensor, dtype: torch.dtype, joint: Stamp | None = None) -> Weights:
        """Fresh weights to compute in ``dtype`` on an input like x. joint: the stamp of a whole
        model, which matches just now."""
        snapshot = self._snapshot
        if snapshot is None or not snapshot.is_fresh(joint):
            snapshot = Snapshot(Stamp(self._leaves, self._gates))
            snapshot.under = joint
            self._snapshot = snapshot
        packed = snapshot.packed.get((dtype, x.shape))
        if packed is not None and onednn.onednn_enabled():
            return self._with_live_gate(packed, dtype)
        return self._with_live_gate(self._fold_or_pack(snapshot, x, dtype), dtype)

    def _with_live_gate(self, weights: Weights, dtype: torch.dtype) -> Weights:
        """The squeeze-excite weights are views of the live ones, whose contents nobody watches; in
        another dtype they would be copies, so they are converted at every call."""
        se = se_of(self._block)
        if se is None or se.reduce.weight.dtype == dtype:
            return weights
        return replace(weights, se=_se_weights(se, dtype))

    def _fold_or_pack(self, snapshot: Snapshot, x: Tensor, dtype: torch.dtype) -> Weights:
        folded = snapshot.folded.get(dtype)
        if folded is None:
            with torch.inference_mode(False), torch.no_grad():
                folded = fold(self._block, dtype)
            if snapshot.stamp.cacheable:
                snapshot.folded[dtype] = folded
        if not onednn.runs_onednn(x, dtype):
            return folded
        return self._pack_second_time(snapshot, folded, x, dtype)

    def _pack_second_time(
        self, snapshot: Snapshot, folded: Weights, x: Tensor, dtype: torch.dtype
    ) -> Weights:
        """Pack for a shape that comes back, so that a stream of ever new shapes packs nothing."""
        if not snapshot.stamp.cacheable:
            return folded
        key = dtype, x.shape
        with self._lock, torch.inference_mode(False), torch.no_grad():
            full = len(snapshot.packed) >= MAX_PACKED_SHAPES
            count = snapshot.counts.pop(key, 0) + 1
            if count < (_PATIENCE if full else 2):
                if len(snapshot.counts) >= _MAX_COUNTED_SHAPES:
                    snapshot.counts.pop(next(iter(snapshot.counts)))
                snapshot.counts[key] = count
                return folded
            if full:
                snapshot.packed.pop(next(iter(snapshot.packed)))
            snapshot.packed[key] = packed = pack_for_onednn(self._block, folded, x)
        return packed
