"""The activations the ops know, by the name that goes into an op's ``act`` or ``gate`` argument."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "silu": F.silu,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}
ACTS = ("none", "silu", "relu", "relu6", "hardswish", "gelu")
GATES = ("sigmoid", "hardsigmoid")

_BY_TYPE: dict[type, str] = {
    nn.Identity: "none",
    nn.SiLU: "silu",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
}


def name_of(module: nn.Module) -> str | None:
    """The activation's name, or None for a module that the ops do not know (a subclass included:
    what it computes is its own business)."""
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else None
    return _BY_TYPE.get(type(module))
