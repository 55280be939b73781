from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Tensor, Tensor], float]:
    def error(got: Tensor, want: Tensor) -> float:
        assert got.dtype == want.dtype and got.shape == want.shape
        scale = want.norm()
        assert scale > 0 and torch.isfinite(scale), "a reference that tells nothing"
        return float((got - want).norm() / scale)

    return error


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Gives every tensor of a module's state dict new values: weights that keep activations near
    one, and batch-norm statistics that differ from their defaults in every channel."""
    pool = torch.randn(1 << 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def normal(tensor: Tensor) -> Tensor:
        # Slices of one pool: a fresh draw for XL's 208 million values would take seconds.
        start = int(torch.randint(pool.numel() // 2, ()))
        count = tensor.numel()
        values = pool[start:].repeat(count // (pool.numel() - start) + 1)[:count]
        return values.view(tensor.shape).to(tensor.dtype)

    @torch.no_grad()
    def fill(module: nn.Module) -> nn.Module:
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(int(torch.randint(1, 100, ())))
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + normal(tensor).abs())
            elif tensor.ndim > 1:
                tensor.copy_(normal(tensor) * (2.0 / tensor[0].numel()) ** 0.5)
            else:  # scales, offsets, means and biases
                is_scale = name.endswith("weight")
                tensor.copy_(0.3 * normal(tensor) + (1.0 if is_scale else 0.0))
        return module

    return fill
