"""A block's training forward and backward on a CPU: convolutions, and passes between them.

What is kept for the backward is what cannot be had again by a pass: the raw output of every
convolution, as it was stored, statistics, and the few numbers of squeeze-and-excite. Activations
are computed again. The gate needs the sum of (gradient x map) before its own gradient is known, of
which the gradient of the map is a linear function: hence ``gated_sums``, five sums of one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activations import FUNCTIONS
from . import aten, convolutions, passes
from .passes.aten import BACKWARDS, wide_dtype


@dataclass(frozen=True)
class Stage:
    """A convolution, its batch norm and its activation. affine: (gamma, beta) or (); frozen: (mean,
    variance) of a norm in evaluation, or () for the statistics of the batch."""

    weight: Tensor
    bias: Tensor | None
    affine: Sequence[Tensor]
    frozen: Sequence[Tensor]
    eps: float
    stride: Sequence[int]
    padding: Sequence[int]
    act: str

    @property
    def gamma(self) -> Tensor | None:
        return self.affine[0] if self.affine else None

    def coefficients(self, over: ModuleType, y: Tensor) -> Tensor:
        beta = self.affine[1] if self.affine else None
        mean, variance = self.frozen or (None, None)
        return over.coefficients(y, self.gamma, beta, mean, variance, self.eps)


@dataclass(frozen=True)
class Gate:
    """Squeeze-and-excite before the last stage: 1x1 convolutions as their modules have them."""

    weights: Sequence[Tensor]
    act: str
    gate: str


@dataclass(frozen=True)
class Chain:
    """A block: stages in turn. mask: (N,) of the drop path, which scales the last stage's output
    before the input is added to it, if ``residual``."""

    stages: tuple[Stage, ...]
    gate: Gate | None = None
    mask: Tensor | None = None
    residual: bool = False

    @property
    def parameters(self) -> list[Tensor | None]:
        """What gradients are of: weight, bias, gamma, beta of each stage, and the gate's four."""
        found: list[Tensor | None] = []
        for stage in self.stages:
            found += (stage.weight, stage.bias, *(stage.affine or (None, None)))
        return [*found, *(self.gate.weights if self.gate else ())]


@dataclass(frozen=True)
class Kept:
    """For the backward. ys: raw outputs; coefficients: of their norms, (5, C); squeezed: the
    mean of the gated map, (N, C), and the outputs of the gate's convolutions, (N, R) and (N, C)."""

    ys: list[Tensor]
    coefficients: list[Tensor]
    squeezed: list[Tensor]

    def listed(self) -> list[Tensor]:
        of_stages = zip(self.ys, self.coefficients, strict=True)
        return [*(tensor for pair in of_stages for tensor in pair), *self.squeezed]

    @classmethod
    def of(cls, listed: Sequence[Tensor], stages: int) -> Kept:
        pairs, squeezed = listed[: 2 * stages], listed[2 * stages :]
        # A hook on saved tensors may give them back in another layout.
        ys = [aten.channels_last(y) for y in pairs[::2]]
        return cls(ys, [c.contiguous() for c in pairs[1::2]], list(squeezed))


def forward(x: Tensor, chain: Chain) -> list[Tensor]:
    """x: (N, C, H, W), in the dtype to compute in. The block's output, channels_last, and what is
    kept: ``Kept.listed``."""
    over = passes.for_map(x)
    kept = Kept([], [], [])
    last = len(chain.stages) - 1
    for i, stage in enumerate(chain.stages):
        y = convolutions.forward(
            _input(over, x, chain, kept, i), stage.weight, stage.bias, stage.stride, stage.padding
        )
        kept.ys.append(y)
        kept.coefficients.append(stage.coefficients(over, y))
        if i == last - 1 and chain.gate is not None:
            pooled = over.act_mean(y, kept.coefficients[i], stage.act)
            kept.squeezed.extend((pooled, *_excite(pooled, chain.gate)))
    residual = aten.channels_last(x) if chain.residual else None
    out = over.bn_act(y, kept.coefficients[last], stage.act, mask=chain.mask, residual=residual)
    return [out, *kept.listed()]


def _input(over: ModuleType, x: Tensor, chain: Chain, kept: Kept, i: int) -> Tensor:
    """What stage i reads. It is never bound to a name, so that it is freed when it has been read,
    before the next map is made."""
    if i == 0:
        return x
    gated = chain.gate is not None and i == len(chain.stages) - 1
    act = chain.stages[i - 1].act
    gate = FUNCTIONS[chain.gate.gate](kept.squeezed[2]) if gated and chain.gate else None
    return over.bn_act(kept.ys[i - 1], kept.coefficients[i - 1], act, gate)


def _as_input(over: ModuleType, x: Tensor, chain: Chain, kept: Kept, i: int) -> Tensor:
    """A map like the one that stage i reads: the gradient of the input needs no more of it."""
    return x if i == 0 else kept.ys[i - 1]


def _excite(pooled: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    first, first_bias, second, second_bias = (w.to(pooled.dtype) for w in gate.weights)
    hidden = F.linear(pooled, first.flatten(1), first_bias)
    logits = F.linear(FUNCTIONS[gate.act](hidden), second.flatten(1), second_bias)
    return hidden, logits


def backward(
    grad: Tensor, x: Tensor, chain: Chain, kept: Kept, wanted: Sequence[bool]
) -> list[Tensor]:
    """The gradients of x and of ``chain.parameters``, those that are ``wanted``: one flag each."""
    of_x, *of_parameters = wanted
    gradients: list[Tensor | None] = [None] * len(of_parameters)
    over = passes.for_map(x)
    grad = aten.channels_last(grad)
    stages = chain.stages
    last = len(stages) - 1
    d, ours = grad, False  # the gradient of what the stage gives, and whether it may be overwritten
    for i in range(last, -1, -1):
        stage, y, coefficients = stages[i], kept.ys[i], kept.coefficients[i]
        own = slice(4 * i, 4 * i + 4)
        gate_is_next = i == last and chain.gate is not None
        deeper = of_x or any(of_parameters[: 4 * i])
        to_input = deeper or (gate_is_next and any(of_parameters[4 * len(stages) :]))
        to_conv = to_input or any(of_parameters[own][:2])
        out = (d if ours else torch.empty_like(d)) if to_conv else None
        of_read = None
        norm = coefficients, stage.gamma, stage.act
        batch = not stage.frozen
        if i == last - 1 and chain.gate is not None:
            sums = over.gated_sums(d, y, coefficients, stage.act)
            gradients[4 * len(stages) :], dmean = _gate_backward(sums[0], y, kept, chain.gate)
            if not (deeper or any(of_parameters[own])):
                break
            gate = FUNCTIONS[chain.gate.gate](kept.squeezed[2])
            of_affine = over.gated_backward(d, y, *norm, sums, gate, dmean, batch, out)
        else:
            mask = chain.mask if i == last else None
            of_affine = over.bn_act_backward(d, y, *norm, mask, batch, out)
        # Of their own: what an op returns may not share memory.
        found: list[Tensor | None] = [None, None, *map(torch.clone, of_affine)]
        if out is not None:
            asked = to_input, of_parameters[own][0]
            if of_parameters[own][1]:
                found[1] = out.sum((0, 2, 3), dtype=wide_dtype(out))
            read = _input if asked[1] else _as_input
            of_read, found[0] = convolutions.backward(
                out, read(over, x, chain, kept, i), stage.weight, stage.stride, stage.padding, asked
            )
        gradients[own] = found
        if not to_input or of_read is None:
            break
        d, ours = of_read, True
    given = [
        g if g is None or p is None else convolutions.like(p, g)
        for g, p in zip(gradients, chain.parameters, strict=True)
    ]
    of_input = [d.add_(grad) if chain.residual else d] if of_x else []
    pairs = zip(given, of_parameters, strict=True)
    return [*of_input, *(g for g, want in pairs if want and g is not None)]


def _gate_backward(
    dgate: Tensor, y: Tensor, kept: Kept, gate: Gate
) -> tuple[list[Tensor | None], Tensor]:
    """Of the gate's gradient, (N, C): the gradients of its four weights, and of every pixel of the
    map through the mean, (N, C). In wide: these are few numbers."""
    first, second = (w.to(dgate.dtype).flatten(1) for w in gate.weights[::2])
    pooled, hidden, logits = (t.to(dgate.dtype) for t in kept.squeezed)
    dlogits = _GATES[gate.gate](dgate, logits)
    dhidden = BACKWARDS[gate.act](dlogits @ second, hidden)
    dmean = dhidden @ first / (y.shape[2] * y.shape[3])
    dsecond = dlogits.t() @ FUNCTIONS[gate.act](hidden)
    of_weights = dhidden.t() @ pooled, dhidden.sum(0), dsecond, dlogits.sum(0)
    return [g.view_as(w) for g, w in zip(of_weights, gate.weights, strict=True)], dmean


def _sigmoid_backward(grad: Tensor, z: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward(grad, torch.sigmoid(z))


_GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": _sigmoid_backward,
    "hardsigmoid": torch.ops.aten.hardsigmoid_backward.default,
}
