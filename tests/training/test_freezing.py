"""Which gradients there are where not everything is trained, and that nobody works for others."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from effv2_kernels.engines import convolutions
from effv2_kernels.engines.passes import aten, native
from tests.training.small import (
    BLOCKS,
    LIBRARIES,
    assert_all_close,
    batch_norms,
    block_named,
    gradients,
    images,
    maps,
    mixed,
    network,
    our_ops,
    patched,
)

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

    def noting(bn_act):
        return lambda *a, **k: calls.append(a[2]) or bn_act(*a, **k)

    for passes in (aten, native):
        monkeypatch.setattr(passes, "bn_act", noting(passes.bn_act))
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


@pytest.mark.parametrize("of_x", [True, False], ids=["input too", "input not"])
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize(
    ("kind", "frozen"), [*((kind, False) for kind in BLOCKS), ("mbconv", True), ("fused", True)]
)
def test_partial_freezing(
    kind: str, trained: str, of_x: bool, frozen: bool, our_masks: Masks, activations: list[str]
) -> None:
    """The gradients that there are unpatched, and no convolution's that nobody wants."""
    plain = block_named(kind)
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
    mixed(out).backward()
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
    loss = mixed(ours(images()))
    backwards = our_ops(loss.backward)
    assert len(backwards) == (8 if first == 0 else 7 - first)
    assert_all_close(gradients(ours, images()), gradients(plain, images()))


_STEMS = ("stem.", "conv_stem.", "bn1.", "features.0.")


def _blocks(model: nn.Module) -> list[nn.Module]:
    stages = getattr(model, "stages", None) or getattr(model, "blocks", None)
    stages = model.features[1:-1] if stages is None else stages
    return [one for stage in stages for one in stage]
