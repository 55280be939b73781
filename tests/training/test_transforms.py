"""Transforms, forward mode and second derivatives: our training ops have none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import effv2_kernels as ek
from tests.training.small import (
    LIBRARIES,
    assert_all_close,
    block,
    images,
    maps,
    network,
    patched,
    random_like,
)

Outcome = tuple[Any, ...]


def _outcome(run: Callable[[], Any]) -> Outcome:
    """What it gives, or how it fails."""
    try:
        return "gives", *torch.utils._pytree.tree_leaves(run())
    except Exception as error:  # whichever the unpatched raises
        return "raises", type(error), str(error)


def _assert_same_outcome(run: Callable[[nn.Module], Any], plain: nn.Module) -> Outcome:
    ours = patched(plain)
    found, right = _outcome(lambda: run(ours)), _outcome(lambda: run(plain))
    assert found[0] == right[0], (found[:3], right[:3])
    if right[0] == "raises":
        assert found == right
    else:
        assert_all_close(found[1:], right[1:])
    return right


def _functional_grad(model: nn.Module) -> Any:
    weights = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (maps(),)).square().mul(0.5).sum()

    return torch.func.grad(loss)(weights)


def _of_each_sample(model: nn.Module) -> Any:
    return torch.vmap(model, randomness="different")(maps().unsqueeze(1))


def _jvp(model: nn.Module) -> Any:
    return torch.func.jvp(model, (maps(),), (maps(seed=9),))


def _dual(model: nn.Module) -> Any:
    with forward_ad.dual_level():
        out = model(forward_ad.make_dual(maps(), maps(seed=9)))
        return tuple(forward_ad.unpack_dual(out))


def _traced(model: nn.Module) -> Any:
    return torch.jit.trace(model, maps(), check_trace=False)(maps(seed=9)).detach()


TRANSFORMS = {
    "grad": _functional_grad,
    "vmap": _of_each_sample,
    "jvp": _jvp,
    "forward mode": _dual,
    "trace": _traced,
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", ["mbconv", "fused"])
def test_transforms(kind: str, transform: str, training: bool) -> None:
    """Results, or errors, are the unpatched ones."""
    outcome = _assert_same_outcome(TRANSFORMS[transform], block(kind).train(training))
    assert training or outcome[0] == "gives"


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_second_derivative(library: str, training: bool) -> None:
    """Raises one clear error. The first one with a graph of its own is right."""
    plain = network(library).train(training)
    ours = patched(plain)
    first = []
    for model in (plain, ours):
        x = images().requires_grad_()
        wanted = [x, *model.parameters()]
        loss = model(x).square().sum()
        first.append(torch.autograd.grad(loss, wanted, create_graph=True))
    assert_all_close(first[1], first[0])
    assert all(g.requires_grad for g in first[1])
    penalty = first[1][0].square().sum()
    with pytest.raises(RuntimeError, match=r"no second derivative .*patch\(model, training=False"):
        penalty.backward()
    ek.patch(ours, training=False)
    second = []
    for model in (plain, ours):
        x = images().requires_grad_()
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(grad.square().sum(), list(model.parameters())[:4]))
    assert_all_close(second[1], second[0])


def test_a_graph_of_the_gradient_that_nobody_follows() -> None:
    """``backward(create_graph=True)``, as some optimisers call it."""
    plain = block()
    found = []
    for model in (plain, patched(plain)):
        x = maps().requires_grad_()
        wanted = [x, *model.parameters()]
        grads = torch.autograd.grad(model(x).square().mul(0.5).sum(), wanted, create_graph=True)
        found.append([g.detach() for g in grads])
        del grads
    assert_all_close(found[1], found[0])


def test_many_gradients_at_once() -> None:
    """``is_grads_batched``, as a vectorised ``torch.autograd.functional.jacobian`` asks for: one
    clear error, and nothing unless it is ours."""
    plain = block()
    for model in (plain, patched(plain)):
        out = model(maps())
        grads = torch.stack([random_like(out), random_like(out).flip(0)])
        wanted = list(model.parameters())
        if model is plain:
            found = torch.autograd.grad(out, wanted, grads, is_grads_batched=True)
            assert all(len(gradient) == 2 for gradient in found)
        else:
            with pytest.raises(RuntimeError, match="not is_grads_batched.*training=False"):
                torch.autograd.grad(out, wanted, grads, is_grads_batched=True)
