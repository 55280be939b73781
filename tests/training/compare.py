"""A training step of a model, patched and not: what is compared, and how it is judged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median

import torch
from torch import Tensor, nn

from tests.support import passes, redrawn, rms

Step = dict[str, Tensor]


def step(
    model: nn.Module, x: Tensor, context: AbstractContextManager | None = None, seed: int = 0
) -> Step:
    """The output, the input's and every parameter's gradient of a random weighting of the outputs,
    and every buffer after it, by name."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(seed)  # of drop paths
    with context or nullcontext():
        output = model(x)
    mix = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (output.to(mix.dtype) * mix).sum().backward()
    assert x.grad is not None
    gradients = {f"d {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return {"output": output.detach(), "d input": x.grad, **gradients, **buffers}


def assert_right(
    model: nn.Module,
    x: Tensor,
    patch: Callable[[nn.Module], object],
    context: Callable[[], AbstractContextManager] = nullcontext,
    number: int = 4,
) -> None:
    """A step of the patched model is as near to float64 as a step of the unpatched one: three times
    its error is allowed, of each tensor, and twice, of all together. One tensor's error is a throw
    of dice: errors are pooled over ``number`` models of other weights and inputs, or over the first
    of them if those are far below the limit; and what PyTorch typically errs, it may err anywhere.
    """
    ours: list[Errors] = []
    theirs: list[Errors] = []
    for seed in range(number):
        drawn = model if seed == 0 else redrawn(model, seed, size=x.shape[-1]).train(model.training)
        x = x if seed == 0 else torch.randn_like(x)
        exact = step(copy.deepcopy(drawn).double(), x.double())
        eager = step(copy.deepcopy(drawn), x, context())
        patched = copy.deepcopy(drawn)
        patch(patched)
        found = step(patched, x, context())
        assert found.keys() == eager.keys() == exact.keys()
        for name, right in exact.items():
            if not right.is_floating_point():  # a counter
                assert torch.equal(found[name], right), name
        ours.append(errors(found, exact))
        theirs.append(errors(eager, exact))
        if not _beyond(ours, theirs, _SURE):
            return
    assert not (beyond := _beyond(ours, theirs, 1.0)), beyond


Errors = dict[str, float]
# Part of the limit below which no further draw is needed.
_SURE = 0.6


def _beyond(ours: Sequence[Errors], theirs: Sequence[Errors], part: float) -> list[str]:
    """The tensors that err more than ``part`` of what they may."""
    pooled = [
        {name: rms([one[name] for one in draws]) for name in draws[0]} for draws in (ours, theirs)
    ]
    found, allowed = pooled
    typical = median(allowed.values())
    beyond = [
        f"{name}: {error:.2e}, PyTorch's {allowed[name]:.2e}, typically {typical:.2e}"
        for name, error in found.items()
        if not passes(error, max(allowed[name], typical), 3.0 * part)
    ]
    if not passes(rms(list(found.values())), rms(list(allowed.values())), 2.0 * part):
        beyond.append("all together")
    return beyond


def errors(found: Step, exact: Step) -> Errors:
    """||found - exact|| of each tensor, in its scale."""
    names = [name for name, right in exact.items() if right.is_floating_point()]
    scales = _scales(exact, names)
    return {name: _error(found[name], exact[name], scales[name]) for name in names}


def _error(found: Tensor, right: Tensor, scale: float) -> float:
    return (found.double() - right.double()).norm().item() / scale


def _scales(exact: Step, names: Sequence[str]) -> dict[str, float]:
    """What a tensor's error is held against: its norm. A batch norm undoes any shift that comes
    before it, and so the gradient of a beta before one is exactly zero, and what is computed for it
    is rounding: it is held against the gradient of its gamma."""
    scales = {name: exact[name].double().norm().item() for name in names}
    for name in names:
        gamma = scales.get(f"{name.removesuffix('.bias')}.weight", 0.0)
        if name.startswith("d ") and name.endswith(".bias") and scales[name] < 1e-9 * gamma:
            scales[name] = gamma
    return scales
