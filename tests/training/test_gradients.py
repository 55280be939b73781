"""Gradients of outputs that are used once, twice or never; and that nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.training.small import (
    BLOCKS,
    LIBRARIES,
    assert_all_close,
    assert_steps_as,
    block,
    block_named,
    images,
    maps,
    mixed,
    network,
    our_ops,
    patched,
    random_like,
)


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return None


def test_an_undefined_gradient_of_the_output() -> None:
    """Gives none, rather than zeros."""
    plain = block()
    for model in (plain, patched(plain)):
        x = maps().requires_grad_()
        out = _NoGradient.apply(model(x))
        (out.sum() + 0.0 * x.sum()).backward()
        assert torch.equal(x.grad, torch.zeros_like(x))
        assert all(p.grad is None for p in model.parameters())


def test_an_output_that_nobody_uses() -> None:
    """Of two blocks on one input, and of two stages' maps."""
    first, second = patched(block()), patched(block("fused"))
    x = maps().requires_grad_()
    used, unused = first(x), second(x)
    assert our_ops(mixed(used).backward) == ["mbconv_train_backward"]
    assert all(p.grad is not None for p in first.parameters())
    assert unused.requires_grad and all(p.grad is None for p in second.parameters())

    plain = network()
    ours = patched(plain)
    found = []
    for model in (plain, ours):
        early, _late = model.forward_intermediates(images(), (0, 2))
        mixed(early).backward()
        found.append([p.grad for p in model.parameters()])
    assert_all_close(found[1], found[0])
    assert None in found[0]


def test_both_outputs_are_used() -> None:
    """A map that goes on and is read on the way: its gradients add up."""
    found = []
    plain = network()
    for model in (plain, patched(plain)):
        early, late = model.forward_intermediates(images(), (1, 2))
        (mixed(early) + mixed(late)).backward()
        found.append([p.grad for p in model.parameters()])
    assert_all_close(found[1], found[0])


@pytest.mark.parametrize("kind", ["mbconv", "fused"])
def test_the_same_graph_twice(kind: str) -> None:
    ours = patched(block(kind))
    x = maps().requires_grad_()
    loss = mixed(ours(x))
    wanted = [x, *ours.parameters()]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    second = torch.autograd.grad(loss, wanted)
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("library", LIBRARIES)
def test_accumulation(library: str) -> None:
    plain = network(library)
    results = []
    for model in (plain, patched(plain)):
        for i in range(2):
            mixed(model(images(seed=i))).backward()
        results.append([p.grad for p in model.parameters()])
    assert_all_close(results[1], results[0])


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("library", LIBRARIES)
def test_training_mode_without_gradients(library: str, guard: Callable) -> None:
    """As for the statistics of a stochastic weight average: buffers move."""
    plain = network(library)
    ours = patched(plain)
    with guard():
        found, right = ours(images()), plain(images())
        assert len(our_ops(lambda: copy.deepcopy(ours)(images()))) == 8
    assert found.is_inference() == right.is_inference()
    torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-12)
    for a, b in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        assert not a.is_inference()
    assert_steps_as(plain, ours, images())


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda g: g[:1, :1, :1, :1].expand_as(g),
    "expanded over images": lambda g: g[:1].expand_as(g),
    "expanded over pixels": lambda g: g[:, :, :1, :1].expand_as(g),
    "contiguous": Tensor.contiguous,
    "channels_last": lambda g: g.contiguous(memory_format=torch.channels_last),
    "transposed": lambda g: g.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda g: torch.stack((g, g), -1).flatten(-2)[..., ::2],
    "with an offset": lambda g: torch.cat((g, g))[g.shape[0] :],
}


@pytest.mark.parametrize("of", ["gradient", "input"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BLOCKS)
def test_layouts_and_that_nothing_is_changed(kind: str, layout: str, of: str) -> None:
    """Of the incoming gradient or of the input, neither of which is written to; nor is a weight."""
    plain = block_named(kind)
    ours = patched(plain)
    results = []
    for model in (plain, ours):
        leaf = maps().requires_grad_()
        x = LAYOUTS[layout](leaf) if of == "input" else leaf
        out = model(x)
        grad = random_like(out)
        grad = LAYOUTS[layout](grad) if of == "gradient" else grad
        if layout == "expanded" and of == "gradient":
            out = out.square()  # a norm has no gradient of a constant
        watched = [x, grad, *model.parameters()]
        before = [(t.detach().clone(), t._version) for t in watched]
        wanted = [leaf, *model.parameters()]
        results.append(torch.autograd.grad(out, wanted, grad))
        for (old, version), now in zip(before, watched, strict=True):
            assert torch.equal(old, now) and version == now._version
    assert_all_close(results[1], results[0])


def test_gradients_share_no_memory() -> None:
    """An optimiser and gradient clipping write into them."""
    ours = patched(block())
    x = maps().requires_grad_()
    mixed(ours(x)).backward()
    found = [x.grad, *(p.grad for p in ours.parameters())]
    assert len({g.untyped_storage().data_ptr() for g in found}) == len(found)
    assert all(g.stride() == p.stride() for g, p in zip(found[1:], ours.parameters(), strict=True))


def test_hooks_of_parameters() -> None:
    plain = network()
    seen: list[list[Tensor]] = []
    for model in (plain, patched(plain)):
        calls: list[str] = []
        for name, parameter in model.named_parameters():
            parameter.register_hook(
                lambda grad, name=name, calls=calls: calls.append(name) or 2 * grad
            )
            parameter.register_post_accumulate_grad_hook(
                lambda p, calls=calls: calls.append("done")
            )
        mixed(model(images())).backward()
        assert sorted(set(calls)) == sorted(["done", *(n for n, _ in model.named_parameters())])
        assert len(calls) == 2 * len(list(model.parameters()))
        seen.append([p.grad for p in model.parameters()])
    assert_all_close(seen[1], seen[0])


def test_weights_that_are_computed() -> None:
    """As meta-learning has them: gradients go through to what they were computed of."""
    plain = block()
    ours = patched(plain)
    results = []
    for model in (plain, ours):
        scale = torch.tensor(1.25, dtype=torch.float64, requires_grad=True)
        weights = {name: p.detach() * scale for name, p in model.named_parameters()}
        out = torch.func.functional_call(model, weights, (maps(),))
        results.append(torch.autograd.grad(mixed(out), [scale]))
    assert_all_close(results[1], results[0])
