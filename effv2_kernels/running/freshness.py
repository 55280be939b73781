"""Whether folded weights are still those of the modules: the one mechanism there is, and only on a
CPU. A ``Snapshot`` is what was folded, together with the ``Stamp`` that it was folded under.

What a stamp sees: another tensor in a module, ``.to()``, ``load_state_dict``, optimizers and
in-place changes (autograd's version counter), and writes that bypass the counter
(``p.data.mul_()``, NumPy views, fused optimizers), through the contents: all of the norms and of
the biases, and of every convolution's weight at least one element of each output channel, 1024 in
all if it has so many, and the largest and the smallest, so that a clamp of outliers is seen however
few they are. What no look can see in time: a write behind autograd's back to a few other weights of
one convolution. ``effv2_kernels.refresh(model)`` is for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import is_

import torch
from torch import Tensor, nn

from .._torch import FakeTensor
from .sequences import Weights

_LEAST_SAMPLE = 1024
#: Any other class may compute otherwise, or hold only a part of the numbers (FSDP's).
PLAIN_TENSORS = (Tensor, nn.Parameter, FakeTensor)


class Stamp:
    """What folded weights were made from, in a form that is quick to compare.

    leaves: all modules that hold weights; gates: those of them whose live weights are used as they
    are, so that their contents need no look. Norms are compared by content alone, weights by
    identity, version, address and a sample of their contents.
    """

    def __init__(self, leaves: Iterable[nn.Module], gates: Iterable[nn.Module]):
        leaves, unfolded = tuple(leaves), set(gates)
        self._norms = tuple(leaf for leaf in leaves if isinstance(leaf, nn.BatchNorm2d))
        self._convs = tuple(leaf for leaf in leaves if leaf not in self._norms)
        self._eps = _eps(self._norms)
        self._tensors = _tensors(self._convs)
        # Holding the storages keeps a freed address from coming back as another tensor's.
        self._held = [t.detach() for t in self._tensors]
        every = _tensors((*self._convs, *self._norms))
        self.cacheable = all(map(_can_be_looked_at, every))
        self._versions = _versions(self._tensors) if self.cacheable else []
        self._addresses = _addresses(self._tensors)
        folded = _tensors(conv for conv in self._convs if conv not in unfolded)
        self._samples = [s for t in folded for s in _samples(t.detach())] if self.cacheable else []
        self._contents = self._read() if self.cacheable else None

    def matches(self) -> bool:
        tensors = _tensors(self._convs)
        return (
            self._contents is not None
            and len(tensors) == len(self._tensors)
            and all(map(is_, tensors, self._tensors))
            and _versions(tensors) == self._versions
            and _addresses(tensors) == self._addresses
            and _eps(self._norms) == self._eps
            and torch.equal(self._read(), self._contents)
        )

    def _read(self) -> Tensor:
        vectors = [vector for norm in self._norms for vector in _vectors(norm)]
        return torch.cat(vectors + self._samples)


class Snapshot:
    """What was folded, and packed by oneDNN, under a stamp. ``under``: the joint stamp of a whole
    model under which this one was last found to match."""

    def __init__(self, stamp: Stamp):
        self.stamp = stamp
        self.under: Stamp | None = None
        self.folded: dict[torch.dtype, Weights] = {}
        self.packed: dict[tuple[torch.dtype, torch.Size], Weights] = {}
        self.counts: dict[tuple[torch.dtype, torch.Size], int] = {}

    def is_fresh(self, joint: Stamp | None) -> bool:
        """``joint``: the model's stamp, which matches just now; then this one is looked at once."""
        if joint is not None and self.under is joint:
            return True
        if not self.stamp.matches():
            return False
        self.under = joint
        return True


def _tensors(leaves: Iterable[nn.Module]) -> list[Tensor]:
    found: list[Tensor | None] = []
    for leaf in leaves:
        found += leaf._parameters.values()
        found += leaf._buffers.values()
    return [tensor for tensor in found if tensor is not None]


def _vectors(norm: nn.BatchNorm2d) -> list[Tensor]:
    """gamma, beta, running mean and variance, those that there are, as they are now."""
    statistics = norm._buffers.get("running_mean"), norm._buffers.get("running_var")
    return [v for v in (*norm._parameters.values(), *statistics) if v is not None]


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors]


def _addresses(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _eps(norms: Iterable[nn.BatchNorm2d]) -> list[float]:
    return [norm.eps for norm in norms]


def _can_be_looked_at(tensor: Tensor) -> bool:
    # Tensors made under inference_mode have no version counter: their changes leave no trace.
    plain = type(tensor) in PLAIN_TENSORS and tensor.is_cpu and not tensor.is_inference()
    return plain and _dense(tensor)


def _dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)


def _samples(tensor: Tensor) -> list[Tensor]:
    """1-D views over the live storage: an element of every row at least, for the stride is at most
    a row's length, and the two extremes. Rows are output channels in both memory formats."""
    count, start = tensor.numel(), tensor.storage_offset()
    row = count // max(tensor.shape[0], 1)
    stride = max(1, min(row, count // _LEAST_SAMPLE))
    while math.gcd(row, stride) > 1:
        stride -= 1  # else it is the same columns of every row
    sample = tensor.as_strided((-(-count // stride),), (stride,), start)
    if stride == 1:
        return [sample]
    whole = tensor.as_strided((count,), (1,), start)
    first, second = sorted((int(whole.argmin()), int(whole.argmax())))
    return [sample, tensor.as_strided((2,), (second - first,), start + first)]
