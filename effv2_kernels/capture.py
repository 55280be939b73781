"""``capture``: run a model as a CUDA graph, one graph a shape."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def capture(model: nn.Module, example_input: Tensor) -> Callable[[Tensor], Tensor]:
    """A callable like ``model`` for inputs like ``example_input``, without launch overhead.

    On the CPU that is the model itself: there is nothing to capture. CUDA tensors raise
    RuntimeError: this version does not capture CUDA graphs yet.
    """
    if example_input.device.type == "cpu":
        return model
    raise RuntimeError(
        "effv2_kernels.capture: this version does not capture CUDA graphs yet; "
        'torch.compile(model, mode="reduce-overhead") does'
    )
