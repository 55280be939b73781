"""What the tests share: well-conditioned random models, and DESIGN section 6's error measure."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def relative_error(found: Tensor, reference: Tensor) -> float:
    """||found - reference|| / ||reference||, in float64; NaN stays NaN and so never passes."""
    found, reference = found.detach().double(), reference.detach().double()
    return ((found - reference).norm() / reference.norm()).item()


def assert_as_close_as_pytorch(
    found: Tensor, eager: Tensor, reference: Tensor, factor: float = 2.0, tiny: float = 1e-6
) -> None:
    """found may err at most ``factor`` times what PyTorch errs in the same dtype, plus ``tiny``."""
    error, allowed = relative_error(found, reference), relative_error(eager, reference)
    assert error <= factor * allowed + tiny, f"error {error:.2e}, PyTorch's {allowed:.2e}"


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0, size: int = 64) -> nn.Module:
    """Random, non-trivial BN statistics and affine parameters, with the activations' scale kept.

    Statistics are those of noise passing through (as training would leave them), then disturbed.
    The last BN of a residual branch gets a small gamma, as trained networks have: without that a
    random deep network amplifies rounding until no two correct programs agree.
    """
    torch.manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.0)
        norm.bias.normal_(0, 0.2)
    for block in model.modules():
        if getattr(block, "has_skip", False) or getattr(block, "use_res_connect", False):
            [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)][-1].weight.mul_(0.3)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    training = model.training
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    model.train()(torch.randn(4, first.in_channels, size, size, dtype=first.weight.dtype))
    model.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        deviation = norm.running_var.sqrt()
        norm.running_mean.add_(0.1 * torch.randn_like(deviation) * deviation)
        norm.running_var.mul_(torch.empty_like(deviation).uniform_(0.8, 1.25))
    return model


@torch.no_grad()
def in_float64(model: nn.Module, x: Tensor) -> Tensor:
    """What an unpatched float64 copy of the model computes."""
    return copy.deepcopy(model).double()(x.double())
