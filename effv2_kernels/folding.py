"""Batch norm folded into convolutions, and the cache of the result, which must never be stale.

Folding: y = gamma (conv(x) - mean) / sqrt(var + eps) + beta is a convolution with the weight
gamma / sqrt(var + eps) times w. It is computed in float32 or wider whatever the model's dtype, and
rounded once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from . import aten, cpu
from .blocks import (
    Block,
    ConvNorm,
    FusedMBConv,
    SqueezeExcite,
    convs_of,
    gates_of,
    leaves_of,
    se_of,
)
from .ops._contract import out_size
from .ops.fused_mbconv import images_at_a_time

# A convolution as the ops take it: weight, bias, norm, eps.
Conv = tuple[Tensor, Tensor | None, tuple[Tensor, ...], float]
MAX_PACKED_SHAPES = 4
# How often a shape must come before it takes the place of another one: packing for ever new shapes
# in turn would cost more than it gains.
_PATIENCE = 16
_MAX_COUNTED_SHAPES = 64
_SAMPLE = 64


@dataclass(frozen=True)
class Weights:
    """What the op sequence of a block takes: each convolution, BN folded in; weights in the compute
    dtype and channels_last (or packed by oneDNN), biases in float32.
    taken: (dtype, (C, H, W)) of inputs that the ops took with these weights, all checks passed."""

    conv: Conv | None = None
    expand: Conv | None = None
    depthwise: Conv | None = None
    project: Conv | None = None
    se: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    packed: bool = False
    taken: set[tuple[torch.dtype, torch.Size]] = field(default_factory=set, compare=False)


def fold(block: Block, dtype: torch.dtype) -> Weights:
    """The block's weights for a computation in ``dtype``, from the modules as they are now."""
    folded: dict[str, Any] = {name: _fold_conv(part, dtype) for name, part in convs_of(block)}
    se = se_of(block)
    if se is not None:
        folded["se"] = _se_weights(se, dtype)
    return Weights(**folded)


def _fold_conv(part: ConvNorm, dtype: torch.dtype) -> Conv:
    weight, bias, vectors = live_conv(part)
    wide = _fold_dtype(weight, dtype)
    weight, shift = aten.folded(weight, bias, vectors, part.norm.eps, wide)
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    return weight, shift.to(torch.promote_types(dtype, torch.float32)), (), 0.0


def live_conv(part: ConvNorm) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """The convolution's weight and bias and the norm's vectors, as they are now, as the ops take
    them: a gamma or beta that stands alone gets the other one."""
    conv, norm = part.conv, part.norm
    bias = None if conv.bias is None else conv.bias.detach()
    mean, variance = norm.running_mean.detach(), norm.running_var.detach()
    gamma, beta = norm.weight, norm.bias
    if gamma is None and beta is None:
        return conv.weight.detach(), bias, (mean, variance)
    gamma = torch.ones_like(mean) if gamma is None else gamma.detach()
    beta = torch.zeros_like(mean) if beta is None else beta.detach()
    return conv.weight.detach(), bias, (mean, variance, gamma, beta)


def _fold_dtype(weight: Tensor, dtype: torch.dtype) -> torch.dtype:
    """float64 where it is cheap: folded once, on a CPU. Rounding a float32 scale, then a float32
    weight, would add about a third to the error of a whole float32 network."""
    folded_once_on_cpu = weight.device.type == "cpu" and not torch.compiler.is_compiling()
    return torch.float64 if folded_once_on_cpu or dtype == torch.float64 else torch.float32


def _se_weights(se: SqueezeExcite, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of the live weights where the dtype allows it."""
    return (
        se.reduce.weight.detach().flatten(1).to(dtype),
        se.reduce.bias.detach().to(dtype),
        se.expand.weight.detach().flatten(1).to(dtype),
        se.expand.bias.detach().to(dtype),
    )


def pack_for_onednn(block: Block, weights: Weights, x: Tensor) -> Weights:
    """The same weights in the layouts that oneDNN prefers for inputs shaped like x."""
    shape, packed = tuple(x.shape), {"se": weights.se, "packed": True}
    if isinstance(block, FusedMBConv) and block.se is None:
        expand = block.expand
        assert weights.expand is not None
        images = images_at_a_time(x, weights.expand[0], expand.stride, expand.padding)
        shape = (images, *shape[1:])
    for name, part in convs_of(block):
        weight, *rest = getattr(weights, name)
        stride, groups = part.stride, part.conv.groups
        layout = cpu.prepack(weight, shape, stride, part.padding, groups)
        packed[name] = (layout, *rest)
        size = out_size(torch.empty(shape, device="meta"), weight, stride, part.padding)
        shape = (shape[0], weight.shape[0], *size)
    return Weights(**packed)


class WeightCache:
    """Folded weights of one block, checked against the live modules before every use.

    What is seen: another tensor in a module, ``.to()``, ``load_state_dict``, optimizer and
    in-place changes (autograd's version counter), a training forward (``num_batches_tracked``
    counts it; the kernels that move the running statistics do not), and on the CPU also writes that
    bypass the counter (``p.data.mul_()``, NumPy views), through the contents: all of the norms, and
    the beginning and the middle of every convolution's weight and bias. What no check can see in
    time needs ``effv2_kernels.refresh(model)``: a write behind autograd's back to a few elements
    of a weight, or to any tensor on a GPU, which reading contents would stall.

    packs: for oneDNN, where that is what runs.
    """

    def __init__(self, block: Block, packs: bool = True):
        self._block = block
        self._packs = packs
        self._leaves = tuple(leaves_of(block))
        self._gates = tuple(gates_of(block))
        self._state: _State | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {"_block": self._block, "_packs": self._packs}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["_block"], state["_packs"])  # type: ignore[misc]

    def clear(self) -> None:
        self._state = None

    @property
    def contents(self) -> object:
        """What the cache holds now: another object once anything was folded again. Whoever keeps it
        keeps the weights in memory."""
        return self._state

    def weights(
        self, x: Tensor, dtype: torch.dtype, group: Stamp | None = None, *, known: bool = False
    ) -> Weights:
        """Fresh weights to compute in ``dtype`` on an input like x.

        group: a stamp of a whole group of blocks, taken before this call; known: that stamp matched
        just now. A cache that looked for itself under that stamp need not look again.
        """
        state = self._state
        looked = known and state is not None and state.group is group
        if state is None or not (looked or state.stamp.matches()):
            stamp = Stamp(self._leaves, self._gates, sample=x.device.type == "cpu")
            self._state = state = _State(stamp)
        state.group = group
        packed = state.packed.get((dtype, x.shape))
        if packed is not None and cpu.onednn_enabled():
            return self._with_live_gate(packed, dtype)
        return self._with_live_gate(self._fold_or_pack(state, x, dtype), dtype)

    def _with_live_gate(self, weights: Weights, dtype: torch.dtype) -> Weights:
        """The squeeze-excite weights are views of the live ones, whose contents nobody watches; in
        another dtype they would be copies, so they are converted at every call."""
        se = se_of(self._block)
        if se is None or se.reduce.weight.dtype == dtype:
            return weights
        return replace(weights, se=_se_weights(se, dtype))

    def _fold_or_pack(self, state: _State, x: Tensor, dtype: torch.dtype) -> Weights:
        folded = state.folded.get(dtype)
        if folded is None:
            folded = _fold_outside_autograd(self._block, dtype, x.device)
            if state.stamp.cacheable and not _capturing(x.device):
                state.folded[dtype] = folded
        if not self._packs or x.device.type != "cpu" or not cpu.runs_onednn(x, dtype):
            return folded
        return self._pack_second_time(state, folded, x, dtype)

    def _pack_second_time(
        self, state: _State, folded: Weights, x: Tensor, dtype: torch.dtype
    ) -> Weights:
        """Pack for a shape that comes back, so that a stream of ever new shapes packs nothing."""
        if not state.stamp.cacheable:
            return folded
        key = dtype, x.shape
        with self._lock, torch.inference_mode(False), torch.no_grad():
            full = len(state.packed) >= MAX_PACKED_SHAPES
            count = state.counts.pop(key, 0) + 1
            if count < (_PATIENCE if full else 2):
                if len(state.counts) >= _MAX_COUNTED_SHAPES:
                    state.counts.pop(next(iter(state.counts)))
                state.counts[key] = count
                return folded
            if full:
                state.packed.pop(next(iter(state.packed)))
            state.packed[key] = packed = pack_for_onednn(self._block, folded, x)
        return packed


def _fold_outside_autograd(block: Block, dtype: torch.dtype, device: torch.device) -> Weights:
    with torch.inference_mode(False), torch.no_grad():
        weights = fold(block, dtype)
    if device.type == "cuda" and not _capturing(device):
        # Another thread may use the weights on its own stream as soon as they are in the cache.
        torch.cuda.current_stream(device).synchronize()
    return weights


def _capturing(device: torch.device) -> bool:
    """Within a CUDA-graph capture the fold becomes part of the graph, and its result is the
    graph's: fresh at every replay, and nobody else's."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class _State:
    """One stamp and what was folded and packed under it."""

    def __init__(self, stamp: Stamp):
        self.stamp = stamp
        self.group: Stamp | None = None
        self.folded: dict[torch.dtype, Weights] = {}
        self.packed: dict[tuple[torch.dtype, torch.Size], Weights] = {}
        self.counts: dict[tuple[torch.dtype, torch.Size], int] = {}


class Stamp:
    """What folded weights were made from, in a form that is quick to compare.

    leaves: all modules that hold weights; gates: those of them whose live weights are used as they
    are, so that their contents need no look. Norms are compared by content where that can be read
    (``sample``), and by identity, version and address elsewhere, as weights are everywhere; weights
    that are folded are sampled on top.
    """

    def __init__(self, leaves: Iterable[nn.Module], gates: Iterable[nn.Module], *, sample: bool):
        self._norms = tuple(leaf for leaf in leaves if isinstance(leaf, nn.BatchNorm2d))
        self._leaves = tuple(leaf for leaf in leaves if not (sample and leaf in self._norms))
        self._eps = _eps(self._norms)
        self._tensors = _tensors(self._leaves)
        # Holding the storages keeps a freed address from coming back as another tensor's.
        self._held = [t.detach() for t in self._tensors]
        every = _tensors(leaves)
        # Tensors made under inference_mode have no version counter: their changes leave no trace.
        self.cacheable = not any(t.is_inference() or not _dense(t) for t in every)
        self._versions = _versions(self._tensors) if self.cacheable else []
        self._addresses = _addresses(self._tensors)
        folded = [leaf for leaf in self._leaves if leaf not in gates]
        self._views = _sample_views(folded)
        self._contents = self._read() if sample and self.cacheable else None

    def matches(self) -> bool:
        tensors = _tensors(self._leaves)
        return (
            self.cacheable
            and len(tensors) == len(self._tensors)
            and all(map(is_, tensors, self._tensors))
            and _versions(tensors) == self._versions
            and _addresses(tensors) == self._addresses
            and _eps(self._norms) == self._eps
            and (self._contents is None or torch.equal(self._read(), self._contents))
        )

    def is_there(self) -> bool:
        """Whether the memory of all that was stamped is where it was, whatever it now holds: a
        storage that was resized (offloaded weights) is not."""
        return _addresses(self._held) == self._addresses

    def _read(self) -> Tensor:
        vectors = [vector for norm in self._norms for vector in _vectors(norm)]
        return torch.cat(vectors + self._views)


def _tensors(leaves: Iterable[nn.Module]) -> list[Tensor]:
    found: list[Tensor | None] = []
    for leaf in leaves:
        found += leaf._parameters.values()
        found += leaf._buffers.values()
    return [tensor for tensor in found if tensor is not None]


def _vectors(norm: nn.BatchNorm2d) -> list[Tensor]:
    """gamma and beta (if there are any), running mean and variance, as they are now."""
    affine = [vector for vector in norm._parameters.values() if vector is not None]
    statistics = norm._buffers
    return [*affine, statistics["running_mean"], statistics["running_var"]]  # type: ignore[list-item]


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors]


def _addresses(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _eps(norms: Iterable[nn.BatchNorm2d]) -> list[float]:
    return [norm.eps for norm in norms]


def _dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)


def _sample_views(leaves: Iterable[nn.Module]) -> list[Tensor]:
    """1-D views, over the live storages, of the beginning and the middle of each weight that is
    folded. They are contiguous, which keeps ``torch.cat`` of many of them cheap."""
    views = []
    for tensor in _tensors(leaves):
        if not tensor.is_floating_point() or not _dense(tensor):
            continue
        tensor = tensor.detach()
        if tensor.numel() <= 2 * _SAMPLE:
            starts, count = [0], tensor.numel()
        else:
            starts, count = [0, tensor.numel() // 2], _SAMPLE
        first = tensor.storage_offset()
        views += [tensor.as_strided((count,), (1,), first + start) for start in starts]
    return views
