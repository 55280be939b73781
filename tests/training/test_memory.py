"""What a block keeps for its backward: its input, the raw outputs of its convolutions, and a few
numbers a channel or an image; no activation, no normed map, no gated map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import effv2_kernels as ek
from tests.training.kinds import KINDS

timm = pytest.importorskip("timm", reason="timm is an extra")


def kept(model: nn.Module, x: Tensor) -> dict[int, int]:
    """Bytes of every storage that a forward saves, by address; parameters left out."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x)
    assert out.requires_grad
    for parameter in model.parameters():
        found.pop(parameter.untyped_storage().data_ptr(), None)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_keeps_what_is_accounted(kind: str) -> None:
    module = KINDS[kind].module()
    x = KINDS[kind].images(n=2).contiguous(memory_format=torch.channels_last)
    ys = 0
    sizes: list[int] = []

    def note(conv: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        nonlocal ys
        of_gate = y.shape[2:] == (1, 1)
        sizes.append(y.numel() if of_gate else 5 * y.shape[1])
        if of_gate and len(sizes) and inputs[0].shape[1] > y.shape[1]:
            sizes.append(inputs[0].numel())  # the mean that the gate is made of
        ys += 0 if of_gate else y.numel()

    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    hooks = [conv.register_forward_hook(note) for conv in convs]
    module(x)
    for hook in hooks:
        hook.remove()
    drops = any(type(m).__name__ == "DropPath" for m in module.modules())
    accounted = ys + sum(sizes) + x.numel() + (len(x) if drops else 0)
    assert sum(kept(KINDS[kind].trained(module), x).values()) == x.element_size() * accounted


def test_a_whole_network_keeps_little() -> None:
    """V2-S at 300 pixels: 56 MB an image in 16 bits, of which eager PyTorch keeps 144."""
    model = timm.create_model("tf_efficientnetv2_s").train()
    ek.patch(model)
    x = torch.randn(1, 3, 300, 300).contiguous(memory_format=torch.channels_last)
    assert 40e6 < sum(kept(model, x).values()) / 2 < 56e6
