"""What the training ops share: each is a ``Chain`` of convolutions with their norms, which it says
how to make of its arguments; schema, check, fake and what CPU tensors run follow from that.

Two ops a block: ``<block>_train(x, ...) -> [out, kept...]`` and ``<block>_train_backward(grad, x,
..., kept, wanted) -> [gradients]``, of x and of ``Chain.parameters``, those that are wanted. They
are opaque: a compiler that saw into them would choose itself what to keep, and keeps more.
``running/training.py`` calls them, and is what autograd sees.

A convolution is given as weight, bias, affine, frozen and eps. weight: (O, I / groups, kh, kw), of
any dtype: it is computed in x's. bias: (O,) or None. affine: (gamma, beta) or (). frozen: (mean,
variance) of a norm in evaluation; () takes the batch's. gate: the weights and biases of
squeeze-and-excite, (R, C, 1, 1), (R,), (C, R, 1, 1), (C,), or (). mask: (N,) of the drop path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._torch import below_autocast
from ..activations import GATES
from ..engines import training
from ..engines.passes.aten import wide_dtype
from ..engines.training import Chain, Kept, Stage
from . import _contract
from ._library import LIBRARY, TAGS

_past_autocast = below_autocast("CPU")
#: Stride and padding of a 1x1 convolution.
POINTWISE = (1, 1), (0, 0, 0, 0)


def convolution(prefix: str = "", optional: bool = False) -> str:
    """The part of a schema that is a convolution with its norm."""
    question = "?" if optional else ""
    return (
        f"Tensor{question} {prefix}weight, Tensor? {prefix}bias, Tensor[] {prefix}affine, "
        f"Tensor[] {prefix}frozen, float {prefix}eps"
    )


@dataclass(frozen=True)
class TrainingOp:
    """``arguments``: the part of both schemas between x and what is kept; ``chain``: of them."""

    name: str
    arguments: str
    chain: Callable[..., Chain]

    @property
    def schema(self) -> str:
        return f"{self.name}(Tensor x, {self.arguments}) -> Tensor[]"

    @property
    def backward_schema(self) -> str:
        rest = f"{self.arguments}, Tensor[] kept, bool[] wanted"
        return f"{self.name}_backward(Tensor grad, Tensor x, {rest}) -> Tensor[]"

    def cpu(self, x: Tensor, *arguments: Any) -> list[Tensor]:
        _check(self.name, x, self.chain(x, *arguments))
        return self.direct(x, *arguments)

    def direct(self, x: Tensor, *arguments: Any) -> list[Tensor]:
        """Past the dispatcher and the checks, for a caller whose arguments are right."""
        with _past_autocast():
            return training.forward(x, self.chain(x, *arguments))

    def fake(self, x: Tensor, *arguments: Any) -> list[Tensor]:
        chain = self.chain(x, *arguments)
        _check(self.name, x, chain)
        wide = wide_dtype(x)
        kept: list[Tensor] = []
        y = x
        for stage in chain.stages:
            size = _contract.out_size(y, stage.weight, stage.stride, stage.padding)
            y = _contract.empty_map(x, stage.weight.shape[0], *size)
            kept += [y, x.new_empty((5, y.shape[1]), dtype=wide)]
        if chain.gate is not None:
            hidden, channels = chain.gate.weights[0].shape[:2]
            kept += [x.new_empty((x.shape[0], c)) for c in (channels, hidden, channels)]
        return [torch.empty_like(y), *kept]

    def cpu_backward(self, grad: Tensor, x: Tensor, *arguments: Any) -> list[Tensor]:
        *own, listed, wanted = arguments
        _check_backward(self.name, grad, x, self.chain(x, *own), listed, wanted)
        return self.direct_backward(grad, x, *arguments)

    def direct_backward(self, grad: Tensor, x: Tensor, *arguments: Any) -> list[Tensor]:
        *own, listed, wanted = arguments
        chain = self.chain(x, *own)
        with _past_autocast():
            return training.backward(grad, x, chain, Kept.of(listed, len(chain.stages)), wanted)

    def fake_backward(self, grad: Tensor, x: Tensor, *arguments: Any) -> list[Tensor]:
        *own, listed, wanted = arguments
        chain = self.chain(x, *own)
        _check_backward(self.name, grad, x, chain, listed, wanted)
        of_x, *of_parameters = wanted
        found = [_contract.empty_map(x, *x.shape[1:])] if of_x else []
        pairs = zip(chain.parameters, of_parameters, strict=True)
        return [*found, *(torch.empty_like(p) for p, want in pairs if want and p is not None)]


def register(op: TrainingOp) -> None:
    """Define both ops, with their fakes and what CPU tensors run."""
    for schema, run, fake in (
        (op.schema, op.cpu, op.fake),
        (op.backward_schema, op.cpu_backward, op.fake_backward),
    ):
        name = schema.partition("(")[0]
        LIBRARY.define(schema, tags=TAGS)
        LIBRARY.impl(name, run, "CPU")
        torch.library.register_fake(f"{LIBRARY.ns}::{name}", fake, lib=LIBRARY)


def _check(name: str, x: Tensor, chain: Chain) -> None:
    _contract.check_map(name, "x", x)
    y = x
    for stage in chain.stages:
        _check_stage(name, y, stage)
        size = _contract.out_size(y, stage.weight, stage.stride, stage.padding)
        y = torch.empty((x.shape[0], stage.weight.shape[0], *size), device="meta")
    if chain.mask is not None:
        _contract.check_vector(name, "mask", chain.mask, x.shape[0])
        _contract.check_dtype(name, "mask", chain.mask, x.dtype)
    if chain.residual and y.shape != x.shape:
        _contract.fail(name, f"residual: x is {tuple(x.shape)}, the output {tuple(y.shape)}")
    if chain.gate is not None:
        _check_gate(name, chain)


def _check_stage(name: str, x: Tensor, stage: Stage) -> None:
    weight = stage.weight
    if weight.dim() != 4:
        _contract.fail(name, f"a weight must be (O, I, kh, kw), got {weight.dim()} dimensions")
    channels, groups = x.shape[1], x.shape[1] // max(weight.shape[1], 1)
    if weight.shape[1] != channels and not (weight.shape[1] == 1 and weight.shape[0] == channels):
        taken = f"a weight takes {weight.shape[1]} channels"
        _contract.fail(name, f"{taken}, its input has {channels}, and it is not depthwise")
    if groups < 1:
        _contract.fail(name, "a weight takes no channels")
    _contract.check_floating(name, "a weight", weight)
    _contract.check_window(name, x, weight, stage.stride, stage.padding)
    _contract.check_act(name, stage.act)
    vectors = [("bias", stage.bias)]
    for title, pair in (("affine", stage.affine), ("frozen", stage.frozen)):
        if len(pair) not in (0, 2):
            _contract.fail(name, f"{title} must be empty or two vectors, got {len(pair)}")
        vectors += ((title, vector) for vector in pair)
    for title, vector in vectors:
        if vector is not None:
            _contract.check_vector(name, title, vector, weight.shape[0])
            _contract.check_device(name, weight, **{title: vector})


def _check_gate(name: str, chain: Chain) -> None:
    gate = chain.gate
    assert gate is not None
    channels = chain.stages[-2].weight.shape[0]
    if len(gate.weights) != 4:
        _contract.fail(name, f"gate must be empty or four tensors, got {len(gate.weights)}")
    first, first_bias, second, second_bias = (tuple(w.shape) for w in gate.weights)
    hidden = first[0]
    expected = (hidden, channels, 1, 1), (hidden,), (channels, hidden, 1, 1), (channels,)
    if (first, first_bias, second, second_bias) != expected:
        shapes = ", ".join(map(str, (first, first_bias, second, second_bias)))
        _contract.fail(name, f"gate must be {', '.join(map(str, expected))}, got {shapes}")
    _contract.check_act(name, gate.act)
    _contract.check_act(name, gate.gate, GATES, "gate")


def _check_backward(
    name: str,
    grad: Tensor,
    x: Tensor,
    chain: Chain,
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
) -> None:
    name = f"{name}_backward"
    expected = 2 * len(chain.stages) + (3 if chain.gate else 0)
    if len(kept) != expected:
        _contract.fail(name, f"kept must be {expected} tensors, got {len(kept)}")
    if grad.shape != kept[2 * len(chain.stages) - 2].shape:
        _contract.fail(name, f"grad must be as the output, got {tuple(grad.shape)}")
    _contract.check_dtype(name, "grad", grad, x.dtype)
    if len(wanted) != 1 + len(chain.parameters):
        _contract.fail(name, f"wanted must be {1 + len(chain.parameters)} flags, got {len(wanted)}")
    missing = [p is None for p in chain.parameters]
    if any(want and none for want, none in zip(wanted[1:], missing, strict=True)):
        _contract.fail(name, "a gradient is wanted of what is not there")
