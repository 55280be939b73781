"""Dropout before the classifier, whose rate a schedule may change while the network is compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """As ``nn.Dropout``, for inputs of any shape, with its rate in a tensor: a number would be part
    of what ``torch.compile`` compiles, and every stage of a schedule would compile again."""

    rate: Tensor

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor(float(rate)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        # In float32, whatever x is: a 16-bit number is not below a small rate often enough.
        kept = torch.rand(x.shape, device=x.device) >= self.rate
        return x * (kept / (1.0 - self.rate)).to(x.dtype)

    def set_rate(self, rate: float) -> None:
        self.rate.fill_(rate)


def take_over(model: nn.Module) -> Dropout | None:
    """Puts one of these in the place of the dropout before the classifier of a network of
    python_ref, timm or torchvision, with rate 0; None if there is no such place. The state dict's
    keys stay as they are."""
    own = Dropout()
    classifier = getattr(model, "classifier", None)
    library: Any = model  # whose attributes are not known here
    if isinstance(getattr(model, "dropout", None), nn.Dropout):
        model.dropout = own
    elif isinstance(classifier, nn.Sequential) and isinstance(classifier[0], nn.Dropout):
        classifier[0] = own
    elif hasattr(model, "drop_rate") and hasattr(model, "get_classifier"):
        library.drop_rate = 0.0
        library.get_classifier().register_forward_pre_hook(_Before(own))
    else:
        return None
    return own


class _Before:
    """A forward pre-hook: a class of this file, so that the model can be pickled."""

    def __init__(self, dropout: Dropout) -> None:
        self.dropout = dropout

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.dropout.train(module.training)
        return (self.dropout(inputs[0]), *inputs[1:])
