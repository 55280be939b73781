"""The weights of blocks as a GPU's kernels read them: live, looked up anew at each forward, so that
nothing that was derived from a weight outlives it, and nothing can be stale.

Where a kernel cannot read a weight as it lies (under autocast; a 3x3 weight that is not
channels_last) it is converted, every time: all those of a model together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch import FakeTensor
from ..blocks import Block, ConvNorm, SqueezeExcite, convs_of, se_of
from ..engines import native
from .sequences import Conv, Weights


class Parts:
    """What of a block holds weights, found once."""

    def __init__(self, block: Block):
        self.convs = tuple(convs_of(block))
        self.se = se_of(block)


def live(blocks: Sequence[Parts], dtype: torch.dtype) -> list[Weights]:
    """The weights of each block for a computation in ``dtype``, from the modules as they are now.

    Weights are in ``dtype``, those of 3x3 and larger windows in channels_last; norms and biases in
    ``dtype`` or float32.
    """
    found = [_read_block(block) for block in blocks]
    weights = [weight for convs, gate in found for weight in _weights_of(convs, gate)]
    ready = iter(_in_kernels_form(weights, dtype))
    return [_put_together(convs, gate, ready, dtype) for convs, gate in found]


Convs = list[tuple[str, Conv]]


def _read_block(block: Parts) -> tuple[Convs, tuple[Tensor, ...]]:
    return [(name, _read(part)) for name, part in block.convs], _gate(block.se)


def _weights_of(convs: Convs, gate: tuple[Tensor, ...]) -> list[Tensor]:
    """What is converted: norms and the biases before them are read in float32 too."""
    return [*(conv[0] for _, conv in convs), *gate]


# Out of the modules' dictionaries: as attributes, of which a network has a thousand, they are five
# times as far.


def _read(part: ConvNorm) -> Conv:
    """A gamma or beta that stands alone gets the other one, for the ops know both or neither."""
    own, affine, statistics = part.conv._parameters, part.norm._parameters, part.norm._buffers
    weight: Tensor | None = own.get("weight")
    weight = part.conv.weight if weight is None else weight  # a plain attribute, maybe
    bias: Tensor | None = own.get("bias")
    mean, variance = statistics["running_mean"], statistics["running_var"]
    assert mean is not None and variance is not None
    gamma, beta = affine.get("weight"), affine.get("bias")
    found: tuple[Tensor, ...] = (mean, variance)
    if gamma is not None or beta is not None:
        both = (
            torch.ones_like(mean) if gamma is None else gamma,
            torch.zeros_like(mean) if beta is None else beta,
        )
        found = (*found, *both)
    if torch.compiler.is_compiling():
        found = tuple(map(_bare, found))
        bias = None if bias is None else _bare(bias)
        weight = _bare(weight)
    return weight, bias, found, part.norm.eps


def _gate(se: SqueezeExcite | None) -> tuple[Tensor, ...]:
    if se is None:
        return ()
    found: list[Tensor] = []
    for own in (se.reduce._parameters, se.expand._parameters):
        weight, bias = own["weight"], own["bias"]
        assert weight is not None and bias is not None
        found += (weight, bias)
    return tuple(map(_bare, found)) if torch.compiler.is_compiling() else tuple(found)


def _bare(tensor: Tensor) -> Tensor:
    """Without the parameter around it, which a graph would take for one to be trained."""
    return tensor.detach()


def _in_kernels_form(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Those that have another dtype or layout are converted."""
    fits = [t.dtype == dtype and _is_laid_out(t) for t in tensors]
    unfit = [t for t, fit in zip(tensors, fits, strict=True) if not fit]
    if not unfit:
        return tensors
    converted = iter(_converted(unfit, dtype))
    return [t if fit else next(converted) for t, fit in zip(tensors, fits, strict=True)]


def _is_laid_out(tensor: Tensor) -> bool:
    if tensor.dim() == 4:
        return tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.is_contiguous()


def _converted(tensors: list[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    real = not (torch.compiler.is_compiling() or isinstance(tensors[0], FakeTensor))
    found = native.convert(tensors, dtype) if real and tensors[0].is_cuda else NotImplemented
    if found is not NotImplemented:
        return found
    return [
        t.to(dtype, memory_format=torch.channels_last) if t.dim() == 4 else t.to(dtype).contiguous()
        for t in tensors
    ]


def _put_together(
    convs: Convs, gate: tuple[Tensor, ...], ready: Iterator[Tensor], dtype: torch.dtype
) -> Weights:
    """``ready``: what became of ``_weights_of`` them."""
    typed: dict[str, Any] = {
        name: _typed(next(ready), bias, norm, eps, dtype) for name, (_, bias, norm, eps) in convs
    }
    if not gate:
        return Weights(**typed)
    first, first_bias, second, second_bias = (next(ready) for _ in gate)
    return Weights(**typed, se=(first.flatten(1), first_bias, second.flatten(1), second_bias))


def _typed(
    weight: Tensor, bias: Tensor | None, norm: tuple[Tensor, ...], eps: float, dtype: torch.dtype
) -> Conv:
    """A norm of several dtypes, or of one that the kernels do not read, becomes float32."""
    if bias is not None and bias.dtype not in (dtype, torch.float32):
        bias = bias.float()
    kind = norm[0].dtype
    alike = all(vector.dtype == kind for vector in norm)
    if not alike or kind not in (dtype, torch.float32):
        norm = tuple(vector.float() for vector in norm)
    return weight, bias, norm, eps
