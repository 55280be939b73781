"""Which gradients there are, of what, at what cost; and that nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from effv2_kernels.engines import convolutions
from effv2_kernels.engines.passes import aten as passes
from tests.training.small import (
    LIBRARIES,
    assert_all_close,
    assert_steps_as,
    batch_norms,
    block,
    images,
    maps,
    network,
    our_ops,
    patched,
)

Gradients = list[Tensor | None]


def gradients(model: nn.Module, x: Tensor, of_x: bool = True) -> Gradients:
    """Of the input and of every parameter."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_(of_x)
    _mixed(model(x)).backward()
    return [x.grad, *(p.grad for p in model.parameters())]


def _mixed(out: Tensor) -> Tensor:
    """A random weighting of it: the sum of a normed map does not depend on what was normed."""
    return (out * _random_like(out)).sum()


def _random_like(out: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(out.shape, generator=generator, dtype=out.dtype)


Masks = list[tuple[bool, bool]]


class _Convolutions(TorchDispatchMode):
    """Which gradients the backward of each convolution of a map gave: its input's, its weight's."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: Masks = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            of_x, of_weight, _ = args[-1]
            if args[0].shape[2:] != (1, 1):  # squeeze-and-excite's
                self.masks.append((of_x, of_weight))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def our_masks(monkeypatch: pytest.MonkeyPatch) -> Masks:
    masks: Masks = []
    backward = convolutions.backward

    def noted(*args):
        masks.append(args[-1])
        return backward(*args)

    monkeypatch.setattr(convolutions, "backward", noted)
    return masks


@pytest.fixture
def activations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry a pass that makes an activated map."""
    calls: list[str] = []
    bn_act = passes.bn_act
    monkeypatch.setattr(passes, "bn_act", lambda *a, **k: calls.append(a[2]) or bn_act(*a, **k))
    return calls


# What is not frozen: the end of a name.
TRAINED = {
    "all": ("",),
    "nothing": (),
    "the gate": ("se.reduce.weight", "se.reduce.bias", "se.expand.weight", "se.expand.bias"),
    "half of the gate": ("se.expand.bias",),
    "all but the gate": ("conv.weight", "bn.weight", "bn.bias"),
    "convolutions": ("conv.weight",),
    "norms": ("bn.weight", "bn.bias"),
    "gammas": ("bn.weight",),
    "first weight": ("expand.conv.weight",),
    "second weight": ("depthwise.conv.weight",),
    "last weight": ("project.conv.weight",),
    "first gamma": ("expand.bn.weight",),
    "first beta": ("expand.bn.bias",),
    "second gamma": ("depthwise.bn.weight",),
    "last gamma": ("project.bn.weight",),
    "last beta": ("project.bn.bias",),
}
BLOCKS = {
    "mbconv": {},
    "mbconv of expansion 1": {"expand": 1},
    "mbconv without a gate": {"se_hidden": 0},
    "mbconv strided": {"stride": 2},
    "fused": {},
    "fused without a gate": {"se_hidden": 0},
    "fused of expansion 1": {"expand": 1, "se_hidden": 0},
}


@pytest.mark.parametrize("of_x", [True, False], ids=["input too", "input not"])
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize(
    ("kind", "frozen"), [*((kind, False) for kind in BLOCKS), ("mbconv", True), ("fused", True)]
)
def test_partial_freezing(
    kind: str, trained: str, of_x: bool, frozen: bool, our_masks: Masks, activations: list[str]
) -> None:
    """The gradients that there are unpatched, and no convolution's that nobody wants."""
    plain = block(kind.split()[0], **BLOCKS[kind])
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.endswith(TRAINED[trained]))
    for norm in batch_norms(plain):
        norm.train(not frozen)
    ours = patched(plain)
    if not (of_x or any(p.requires_grad for p in plain.parameters())):
        assert not ours(maps()).requires_grad
        return
    with _Convolutions() as theirs:
        right = gradients(plain, maps(), of_x)
    x = maps().requires_grad_(of_x)
    out = ours(x)
    activations.clear()
    _mixed(out).backward()
    assert_all_close([x.grad, *(p.grad for p in ours.parameters())], right)
    assert our_masks == theirs.masks
    # Of its input a convolution's backward needs the values for the gradient of its weight only;
    # and the block's input is at hand.
    convs = len(batch_norms(plain))
    inputs = [wanted for wanted, _ in zip(our_masks, range(convs - 1), strict=False)]
    assert len(activations) == sum(of_weight for _, of_weight in inputs)


@pytest.mark.parametrize("first", [0, 3, 6])
@pytest.mark.parametrize("library", LIBRARIES)
def test_frozen_stages(library: str, first: int) -> None:
    """Only what follows the first ``first`` blocks is trained: those before have no backward."""
    plain = network(library)
    blocks = list(_blocks(plain))
    for module in blocks[:first]:
        module.requires_grad_(False)
    stem = [p for n, p in plain.named_parameters() if n.startswith(_STEMS)]
    for parameter in stem:
        parameter.requires_grad_(first == 0)
    ours = patched(plain)
    assert_all_close(gradients(ours, images(), False), gradients(plain, images(), False))
    loss = _mixed(ours(images()))
    backwards = our_ops(loss.backward)
    assert len(backwards) == (8 if first == 0 else 7 - first)
    assert_all_close(gradients(ours, images()), gradients(plain, images()))


_STEMS = ("stem.", "conv_stem.", "bn1.", "features.0.")


def _blocks(model: nn.Module) -> list[nn.Module]:
    stages = getattr(model, "stages", None) or getattr(model, "blocks", None)
    stages = model.features[1:-1] if stages is None else stages
    return [one for stage in stages for one in stage]


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return None


def test_an_undefined_gradient_of_the_output() -> None:
    plain = block()
    ours = patched(plain)
    for model in (plain, ours):
        x = maps().requires_grad_()
        out = _NoGradient.apply(model(x))
        (out.sum() + 0.0 * x.sum()).backward()
        assert torch.equal(x.grad, torch.zeros_like(x))
    # Unpatched, autograd materialises zeros somewhere on the way, or does not.
    assert all(p.grad is None or not p.grad.any() for p in ours.parameters())


def test_an_output_that_nobody_uses() -> None:
    """Of two blocks on one input, and of two stages' maps."""
    first, second = patched(block()), patched(block("fused"))
    x = maps().requires_grad_()
    used, unused = first(x), second(x)
    assert our_ops(_mixed(used).backward) == ["mbconv_train_backward"]
    assert all(p.grad is not None for p in first.parameters())
    assert unused.requires_grad and all(p.grad is None for p in second.parameters())

    plain = network()
    ours = patched(plain)
    found = []
    for model in (plain, ours):
        early, _late = model.forward_intermediates(images(), (0, 2))
        _mixed(early).backward()
        found.append([p.grad for p in model.parameters()])
    assert_all_close(found[1], found[0])
    assert None in found[0]


def test_both_outputs_are_used() -> None:
    """A map that goes on and is read on the way: its gradients add up."""
    found = []
    plain = network()
    for model in (plain, patched(plain)):
        early, late = model.forward_intermediates(images(), (1, 2))
        (_mixed(early) + _mixed(late)).backward()
        found.append([p.grad for p in model.parameters()])
    assert_all_close(found[1], found[0])


@pytest.mark.parametrize("kind", ["mbconv", "fused"])
def test_the_same_graph_twice(kind: str) -> None:
    ours = patched(block(kind))
    x = maps().requires_grad_()
    loss = _mixed(ours(x))
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
            _mixed(model(images(seed=i))).backward()
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
    plain = block(kind.split()[0], **BLOCKS[kind])
    ours = patched(plain)
    results = []
    for model in (plain, ours):
        leaf = maps().requires_grad_()
        x = LAYOUTS[layout](leaf) if of == "input" else leaf
        out = model(x)
        grad = _random_like(out)
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
    _mixed(ours(x)).backward()
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
        _mixed(model(images())).backward()
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
        results.append(torch.autograd.grad(_mixed(out), [scale]))
    assert_all_close(results[1], results[0])
