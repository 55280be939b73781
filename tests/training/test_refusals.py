"""Where our training ops do not run, and what happens instead: what happens unpatched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrizations, parametrize, prune

import effv2_kernels as ek
from tests.training.compare import step
from tests.training.small import (
    LIBRARIES,
    assert_all_close,
    assert_same,
    assert_steps_as,
    batch_norms,
    block,
    images,
    maps,
    network,
    our_ops,
    patched,
)


def _child(model: nn.Module, which: str) -> nn.Module:
    """A part of a block in the middle; of a network's first or last convolution."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = batch_norms(model)
    acts = [m for m in model.modules() if isinstance(m, nn.SiLU)]
    return {
        "stem": convs[0],
        "head": [c for c in convs if c.out_channels == 36][-1],
        "convolution": next(c for c in convs if c.groups > 1),
        "norm": norms[len(norms) // 2],
        "activation": acts[len(acts) // 2],
        "gate": next(c for c in convs if c.bias is not None),
    }[which]


def _blocks_left(library: str, which: str) -> int:
    """That still run on our ops: timm's model runs both of its ends, or none."""
    return 6 if library == "timm" and which in ("stem", "head") else 7


CHILDREN = ("stem", "head", "convolution", "norm", "activation", "gate")
HOOKS = ("forward", "forward_pre", "full_backward", "full_backward_pre")


def _without_inplace(model: nn.Module) -> nn.Module:
    """A backward hook's view of an activation may not be written into."""
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return model


@pytest.mark.parametrize(
    ("library", "which", "kind"),
    [
        *(("python_ref", which, kind) for which in CHILDREN for kind in HOOKS),
        *((library, "stem", kind) for library in ("timm", "torchvision") for kind in HOOKS),
        *((library, "gate", "forward") for library in ("timm", "torchvision")),
    ],
)
def test_hooks_on_a_child(library: str, which: str, kind: str) -> None:
    plain = _without_inplace(network(library))
    ours = patched(plain)
    calls: list[nn.Module] = []
    handles = []
    for model in (plain, ours):
        child = _child(model, which)
        register = getattr(child, f"register_{kind}_hook")
        handles.append(register(lambda module, *_: calls.append(module)))
    assert_steps_as(plain, ours, images())
    assert calls.count(_child(ours, which)) == calls.count(_child(plain, which)) == 1
    assert len(our_ops(lambda: ours(images()))) == _blocks_left(library, which)
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        plain(images())  # as many steps as the other
    assert_steps_as(plain, ours, images())
    assert len(our_ops(lambda: ours(images()))) == 8


@pytest.mark.parametrize("library", LIBRARIES)
def test_hooks_that_change_what_passes(library: str) -> None:
    plain = _without_inplace(network(library))
    ours = patched(plain)
    for model in (plain, ours):
        _child(model, "norm").register_forward_hook(lambda module, args, out: 1.5 * out)
        _child(model, "convolution").register_full_backward_hook(
            lambda module, inputs, outputs: (2.0 * inputs[0],)
        )
    assert_steps_as(plain, ours, images())


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_on_a_block(kind: str) -> None:
    """Its own hooks are run by its call, around our ops."""
    plain = network()
    ours = patched(plain)
    calls: list[Any] = []
    for model in (plain, ours):
        register = getattr(model.stages[2][0], f"register_{kind}_hook")
        register(lambda module, *values: calls.append(values))
    assert_steps_as(plain, ours, images())
    assert len(calls) == 2
    tensors = [[t for t in torch.utils._pytree.tree_leaves(values)] for values in calls]
    assert_all_close(tensors[0], tensors[1])
    assert len(our_ops(lambda: ours(images()))) == 8


GLOBAL = {
    "forward": nn_module.register_module_forward_hook,
    "forward_pre": nn_module.register_module_forward_pre_hook,
    "full_backward": nn_module.register_module_full_backward_hook,
    "full_backward_pre": nn_module.register_module_full_backward_pre_hook,
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("library", ["python_ref", "timm"])
def test_hooks_on_everything(library: str, kind: str) -> None:
    plain = _without_inplace(network(library))
    ours = patched(plain)
    calls: list[nn.Module] = []
    handle = GLOBAL[kind](lambda module, *_: calls.append(module))
    try:
        assert_steps_as(plain, ours, images())
        assert not our_ops(lambda: copy.deepcopy(ours)(images()))
    finally:
        handle.remove()
    for model in (plain, ours):
        seen = set(calls) & set(model.modules())
        leaves = {m for m in model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)}
        assert seen >= leaves
    assert_steps_as(plain, ours, images())
    assert len(our_ops(lambda: ours(images()))) == 8


@pytest.mark.parametrize("which", CHILDREN)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_replaced_forward(library: str, which: str) -> None:
    plain = network(library)
    ours = patched(plain)
    calls: list[nn.Module] = []

    def replace(child: nn.Module) -> None:
        forward = child.forward
        child.forward = lambda x: calls.append(child) or 1.25 * forward(x)

    for model in (plain, ours):
        replace(_child(model, which))
    assert_steps_as(plain, ours, images())
    assert set(calls) == {_child(plain, which), _child(ours, which)}
    assert len(our_ops(lambda: ours(images()))) == _blocks_left(library, which)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_replaced_child(library: str) -> None:
    plain = network(library)
    ours = patched(plain)
    for model in (plain, ours):
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if child is _child(model, "convolution"):
                    torch.manual_seed(3)
                    other = nn.Conv2d(
                        *(child.in_channels, child.out_channels, child.kernel_size),
                        stride=child.stride,
                        padding=2,
                        groups=child.groups,
                    )
                    setattr(parent, name, other.double())
                    break
    assert_steps_as(plain, ours, images())
    assert len(our_ops(lambda: ours(images()))) == 7


def _synchronised(model: nn.Module, library: str) -> nn.Module:
    if library == "timm":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


@pytest.mark.parametrize("library", LIBRARIES)
def test_synchronised_norms_before_the_patch(library: str) -> None:
    """They are refused by name."""
    model = _synchronised(network(library), library)
    report = ek.patch(model)
    assert not report.patched and len(report.skipped) == 8
    assert all("SyncBatchNorm" in entry.reason for entry in report.skipped)
    ek.unpatch(model)
    with pytest.raises(RuntimeError, match="strict=True.*\n.*SyncBatchNorm"):
        ek.patch(model, strict=True)
    assert not ek.is_patched(model)


@pytest.mark.parametrize("library", LIBRARIES)
def test_synchronised_norms_after_the_patch(library: str) -> None:
    plain = network(library)
    ours = _synchronised(patched(plain), library)
    plain = _synchronised(plain, library)
    assert not our_ops(lambda: copy.deepcopy(ours)(images()))
    assert_steps_as(plain, ours, images())


def _weight_norm(conv: nn.Module) -> None:
    parametrizations.weight_norm(conv)


def _spectral_norm(conv: nn.Module) -> None:
    torch.manual_seed(0)
    parametrizations.spectral_norm(conv)


class _Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2.0 * weight


def _own(conv: nn.Module) -> None:
    parametrize.register_parametrization(conv, "weight", _Double())


def _pruned(conv: nn.Module) -> None:
    prune.l1_unstructured(conv, "weight", amount=0.3)


def _old_weight_norm(conv: nn.Module) -> None:
    torch.nn.utils.weight_norm(conv)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("library", "which", "change"),
    [
        *(
            ("python_ref", which, change)
            for which in ("convolution", "gate")
            for change in (_weight_norm, _spectral_norm, _own, _pruned, _old_weight_norm)
        ),
        *((library, "stem", _own) for library in LIBRARIES),
        *((library, "stem", _pruned) for library in LIBRARIES),
    ],
)
def test_parametrised_weights(library: str, which: str, change: Callable) -> None:
    plain = network(library)
    ours = patched(plain)
    for model in (plain, ours):
        change(_child(model, which))
    assert_steps_as(plain, ours, images(), steps=2)
    assert len(our_ops(lambda: ours(images()))) == _blocks_left(library, which)


class _Tagged(Tensor):
    """A subclass, which may compute otherwise."""


def test_subclasses_of_tensors() -> None:
    plain = block()
    ours = patched(plain)
    results = []
    for model in (plain, ours):
        out = model(maps().as_subclass(_Tagged))
        assert type(out) is _Tagged
        results.append(out.as_subclass(Tensor).detach())
        for parameter in model.parameters():
            parameter.grad = None
    assert_all_close(results[1:], results[:1])
    for model in (plain, ours):
        weight = model.project.conv.weight.detach().as_subclass(_Tagged)
        model.project.conv.weight = nn.Parameter(weight)
    assert not our_ops(lambda: ours(maps()))


@pytest.mark.parametrize("wrong", ["rank", "channels", "dtype"])
def test_a_wrong_input(wrong: str) -> None:
    """One clear error; and no norm has moved."""
    ours = patched(block())
    before = {name: b.clone() for name, b in ours.named_buffers()}
    x = {"rank": maps()[0, 0], "channels": maps()[:, :5], "dtype": maps().float()}[wrong]
    with pytest.raises((RuntimeError, ValueError)):
        ours(x)
    assert all(torch.equal(b, before[name]) for name, b in ours.named_buffers())


def test_an_unpatched_block_among_patched_ones() -> None:
    """A hook on one block's child leaves the other blocks on our ops, gradients included."""
    plain = network()
    ours = patched(plain)
    ours.stages[1][1].expand.register_forward_hook(lambda *_: None)
    assert_same(step(ours, images()), step(plain, images()))
    names = our_ops(lambda: step(ours, images()))
    assert len(names) == 14
