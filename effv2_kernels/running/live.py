"""The weights of blocks as a GPU's kernels read them: live, looked up anew at each forward, so that
nothing that was derived from a weight outlives it, and nothing can be stale.

Where a kernel cannot read a weight as it lies (under autocast; a 3x3 weight that is not
channels_last) it is converted, every time: all those of a model in one launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .. import cuda
from ..blocks import Block, ConvNorm, SqueezeExcite, convs_of, se_of
from .sequences import Conv, Gate, Weights


def live(blocks: Sequence[Block], dtype: torch.dtype) -> list[Weights]:
    """The weights of each block for a computation in ``dtype``, from the modules as they are now.

    Weights are in ``dtype``, those of 3x3 and larger windows in channels_last; norms and biases in
    ``dtype`` or float32.
    """
    read = [[(name, _read(part)) for name, part in convs_of(block)] for block in blocks]
    gates = [_gate(se_of(block)) for block in blocks]
    weights = [conv[0] for convs in read for _, conv in convs]
    weights += [tensor for gate in gates for tensor in gate]
    ready = _in_kernels_form(weights, dtype)
    return [
        Weights(
            **{name: _typed(conv, ready, dtype) for name, conv in convs},
            se=_as_matrices(gate, ready) if gate else None,
        )
        for convs, gate in zip(read, gates, strict=True)
    ]


def _read(part: ConvNorm) -> Conv:
    """A gamma or beta that stands alone gets the other one, for the ops know both or neither."""
    conv, norm = part.conv, part.norm
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    gamma, beta = norm.weight, norm.bias
    found: tuple[Tensor, ...] = (mean, variance)
    if gamma is not None or beta is not None:
        gamma = torch.ones_like(mean) if gamma is None else gamma
        found = (mean, variance, gamma, torch.zeros_like(mean) if beta is None else beta)
    return _bare(conv.weight), _bare(conv.bias), tuple(map(_bare, found)), norm.eps


def _gate(se: SqueezeExcite | None) -> tuple[Tensor, ...]:
    if se is None:
        return ()
    both = se.reduce, se.expand
    return tuple(_bare(t) for conv in both for t in (conv.weight, conv.bias))


def _bare(tensor: Tensor | None) -> Tensor | None:
    """Without the parameter around it, where a graph would take it for one to be trained."""
    return tensor.detach() if tensor is not None and torch.compiler.is_compiling() else tensor


def _in_kernels_form(tensors: Iterable[Tensor], dtype: torch.dtype) -> dict[int, Tensor]:
    """By the identity of those that have another dtype or layout: what they are converted to."""
    unfit = [t for t in tensors if t.dtype != dtype or not _is_laid_out(t)]
    return dict(zip(map(id, unfit), _converted(unfit, dtype), strict=True)) if unfit else {}


def _is_laid_out(tensor: Tensor) -> bool:
    if tensor.dim() == 4:
        return tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.is_contiguous()


def _converted(tensors: list[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    found = cuda.convert(tensors, dtype) if tensors[0].is_cuda else NotImplemented
    if found is not NotImplemented:
        return found
    return [
        t.to(dtype, memory_format=torch.channels_last) if t.dim() == 4 else t.to(dtype).contiguous()
        for t in tensors
    ]


def _typed(conv: Conv, ready: dict[int, Tensor], dtype: torch.dtype) -> Conv:
    """A norm of several dtypes, or of one that the kernels do not read, becomes float32."""
    weight, bias, norm, eps = conv
    if bias is not None and bias.dtype not in (dtype, torch.float32):
        bias = bias.float()
    kinds = {vector.dtype for vector in norm}
    if len(kinds) > 1 or not kinds <= {dtype, torch.float32}:
        norm = tuple(vector.float() for vector in norm)
    return ready.get(id(weight), weight), bias, norm, eps


def _as_matrices(gate: tuple[Tensor, ...], ready: dict[int, Tensor]) -> Gate:
    first, first_bias, second, second_bias = (ready.get(id(t), t) for t in gate)
    return first.flatten(1), first_bias, second.flatten(1), second_bias
