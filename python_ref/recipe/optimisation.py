"""The optimizer, its learning rate over time, and the moving average of the weights.

Source: EfficientNetV2 (arXiv 2104.00298) section 4 and the official hyperparameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import RecipeError
from .groups import Group
from .options import Recipe
from .wrapping import sharded_like


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay acts on weights alone, not on biases nor on a norm's parameters.

    ``rmsproptf`` is timm's: epsilon within the root and averages of squares that begin at one, as
    in TensorFlow, for which the paper's values are made.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = peak_rate(recipe)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0
        )
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    try:
        from timm.optim import RMSpropTF
    except ImportError as error:
        raise RecipeError(
            "--optimizer rmsproptf needs timm: pip install effv2_kernels[train]"
        ) from error
    return RMSpropTF(
        groups, lr=rate, alpha=recipe.alpha, eps=recipe.epsilon, momentum=recipe.momentum
    )


def peak_rate(recipe: Recipe) -> float:
    """The learning rate after the warm-up: proportional to the batch."""
    assert recipe.batch is not None
    return recipe.lr * recipe.batch / 256


def rate_factor(recipe: Recipe, epoch: float) -> float:
    """What the peak rate is multiplied by at an epoch (with fractions).

    A linear warm-up, and then, counted from the start, ``decay_rate`` once every ``decay_epochs``;
    or half a cosine to zero, which begins with the end of the warm-up (``preset`` paper) or with
    the training (official); or nothing.
    """
    if epoch < recipe.warmup_epochs:
        return epoch / recipe.warmup_epochs
    if recipe.decay == "exponential":
        return recipe.decay_rate ** math.floor(epoch / recipe.decay_epochs + 1e-9)
    if recipe.decay == "cosine":
        begin = recipe.warmup_epochs if recipe.preset == "paper" else 0.0
        part = (epoch - begin) / max(recipe.epochs - begin, 1e-9)
        return 0.5 * (1.0 + math.cos(math.pi * min(part, 1.0)))
    return 1.0


class Average:
    """The moving average of all weights and of the norms' statistics, which is what is evaluated
    and kept. It is as near to the network as training is young: after t updates the decay is
    min(decay, (1 + t) / (10 + t)), as in the official code."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._live = _averaged(model)
        self._decay = decay
        self.tensors = {name: t.detach().clone() for name, t in self._live.items()}
        # Sharded tensors and others cannot be updated in one call.
        kinds: dict[type, list[str]] = {}
        for name, tensor in self.tensors.items():
            kinds.setdefault(type(tensor), []).append(name)
        self._kinds = list(kinds.values())

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """``updates``: of the weights so far, this one not counted."""
        decay = min(self._decay, (1 + updates) / (10 + updates))
        for names in self._kinds:
            averages, live = ([t[name] for name in names] for t in (self.tensors, self._live))
            torch._foreach_lerp_(averages, live, 1.0 - decay)

    def share(self, group: Group) -> None:
        """The norms' statistics are each process's own: all take the first one's, which are kept
        and evaluated."""
        if group.world > 1:
            for name, live in self._live.items():
                if not isinstance(live, nn.Parameter):  # which are the same in all
                    dist.broadcast(self.tensors[name], 0)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network computes with the average; its own values are back after it, bit for bit."""
        own = {name: t.detach().clone() for name, t in self._live.items()}
        try:
            self._write(self.tensors)
            yield
        finally:
            self._write(own)

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(sharded_like(tensors[name], tensor))

    @torch.no_grad()
    def _write(self, tensors: dict[str, Tensor]) -> None:
        for name, live in self._live.items():
            live.copy_(tensors[name])


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    """Everything of a state dict that is no counter."""
    state = model.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if t.is_floating_point()}
