"""Multiply-accumulate counts, without computing anything."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def count_macs(
    model: nn.Module, resolution: int | tuple[int, int], *, in_chans: int | None = None
) -> int:
    """Multiply-accumulates of all convolution and linear modules for one image, in eval mode.

    ``resolution`` is the image's side, or (height, width). ``in_chans`` defaults to what the first
    convolution takes. Nothing is allocated or computed: the forward runs on the meta device, with
    stand-ins for parameters and buffers. The model may be on any device and stays as it was, hooks
    and training flags included. Only work done by calling ``nn.Conv2d`` and ``nn.Linear`` modules
    (and their subclasses) is seen.
    """
    size = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    if not layers:
        return 0
    if in_chans is None:
        first = next((m for m in layers if isinstance(m, nn.Conv2d)), None)
        if first is None:
            raise ValueError("the model has no convolution to tell its input channels: in_chans=?")
        in_chans = first.in_channels

    total = 0

    def add(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        # Per output element: one product for each weight of its own filter.
        total += output.numel() * (module.weight.numel() // module.weight.shape[0])

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stand_ins = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
    image = torch.empty(1, in_chans, *size, device="meta", dtype=layers[0].weight.dtype)
    training = [m for m in model.modules() if m.training]
    handles = [layer.register_forward_hook(add) for layer in layers]
    try:
        model.eval()
        with torch.no_grad():
            torch.func.functional_call(model, stand_ins, (image,))
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return total
