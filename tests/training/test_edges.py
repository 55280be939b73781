"""Inputs and uses at the edge of what a block takes: as unpatched, errors too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import effv2_kernels as ek

blocks = pytest.importorskip("timm.models._efficientnet_blocks", reason="timm is an extra")
torchvision = pytest.importorskip(
    "torchvision.models.efficientnet", reason="torchvision is an extra"
)


def both(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The module unpatched and patched, in training mode."""
    plain = nn.Sequential(module).train()
    ours = copy.deepcopy(plain)
    assert ek.patch(ours).patched[0].training
    return plain, ours


@pytest.mark.parametrize("channels", [6, 8, 32])
@pytest.mark.parametrize(
    "make",
    [
        lambda: blocks.ConvBnAct(3, 24, 3),
        lambda: blocks.EdgeResidual(16, 24, 3, exp_ratio=4.0),
        lambda: blocks.DepthwiseSeparableConv(16, 24, 3),
        lambda: blocks.InvertedResidual(16, 24, 3, exp_ratio=4.0),
    ],
)
def test_a_wrong_number_of_channels(make, channels: int) -> None:
    errors = []
    for model in both(make()):
        with pytest.raises(RuntimeError) as caught:
            model(torch.randn(2, channels, 8, 8))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: blocks.InvertedResidual(16, 24, 1, exp_ratio=4.0),
        lambda: blocks.DepthwiseSeparableConv(16, 24, 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_1x1_depthwise_convolution(make, dtype: torch.dtype) -> None:
    plain, ours = both(make().to(dtype))
    x = torch.randn(3, 16, 5, 4, dtype=dtype)
    for model in (plain, ours):
        model(x).square().sum().backward()
    torch.testing.assert_close(ours(x), plain(x))
    for found, right in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, right.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_wider_input_under_autocast(library: str, training: bool) -> None:
    """timm's sum with the input is as wide as that, torchvision's in place."""
    if library == "timm":
        module = blocks.InvertedResidual(16, 16, 3, exp_ratio=4.0)
    else:
        config = torchvision.MBConvConfig(4, 3, 1, 16, 16, 1)
        module = torchvision.MBConv(config, 0.0, nn.BatchNorm2d)
    found = []
    for model in both(module):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
            found.append(model.train(training)(torch.ones(2, 16, 8, 8)).dtype)
    assert found[0] == found[1] == (torch.float32 if library == "timm" else torch.bfloat16)


def test_a_beta_may_change_before_the_backward() -> None:
    """Nobody reads its value there."""
    results: list[Tensor] = []
    for model in both(blocks.ConvBnAct(3, 24, 3)):
        beta = model[0].bn1.bias
        out = model(torch.ones(2, 3, 8, 8)).sum()
        with torch.no_grad():
            beta.add_(1)
        out.backward()
        assert beta.grad is not None
        results.append(beta.grad)
    torch.testing.assert_close(results[1], results[0])


def test_gradients_with_a_graph_can_be_scaled_in_place() -> None:
    _, ours = both(blocks.ConvBnAct(3, 24, 3))
    loss = ours(torch.randn(2, 3, 8, 8)).square().sum()
    first, *_ = torch.autograd.grad(loss, list(ours.parameters()), create_graph=True)
    before = first.detach().clone()
    first.mul_(2)
    torch.testing.assert_close(first.detach(), 2 * before)


def test_a_gate_of_another_dtype_raises_as_unpatched() -> None:
    module = blocks.InvertedResidual(16, 16, 3, exp_ratio=4.0, se_layer=_gate())
    module.se.to(torch.bfloat16)
    for model in both(module):
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 16, 8, 8))


def _gate():
    return lambda channels, **_: blocks.SqueezeExcite(channels, rd_ratio=0.25, act_layer=nn.SiLU)
