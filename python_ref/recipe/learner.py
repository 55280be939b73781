"""A network with all that changes it: optimizer, moving average, precision, other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import wrapping
from .dropout import take_over
from .errors import RecipeError
from .evaluation import Score, evaluate
from .groups import Group
from .loader import Batch, Normalise, Statistics
from .optimisation import Average, make_optimizer, peak_rate
from .options import Recipe

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Learner:
    """``model`` changes in place.

    recipe: ``resolved``. statistics: how pixels come near zero. prepare: called with the model on
    its device before anything holds its parameters, which is where a caller puts other kernels
    under it.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        group: Group,
        statistics: Statistics,
        prepare: Callable[[nn.Module], object] | None = None,
    ) -> None:
        self.recipe, self.group = recipe, group
        self._dropout = take_over(model)
        self.model = model.to(group.device).train()
        if not recipe.fsdp:  # which cuts contiguous weights only
            nn.utils.convert_conv2d_weight_memory_format(self.model, torch.channels_last)
        if prepare is not None:
            prepare(self.model)
        if recipe.fsdp:
            wrapping.shard(self.model, group)
        self.average = Average(self.model, recipe.ema)
        self.optimizer = make_optimizer(self.model, recipe)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=recipe.amp == "fp16")
        if recipe.compile:
            self.model.compile()
        self._network = self.model if recipe.fsdp else wrapping.replicate(self.model, group)
        self._to_device = Normalise(statistics, group.device)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.optimizer.param_groups[0]["lr"]

    def set_rate(self, factor: float) -> None:
        """``factor``: of the recipe's peak rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = peak_rate(self.recipe) * factor

    def set_dropout(self, rate: float) -> None:
        if self._dropout is not None:
            self._dropout.set_rate(rate)

    def accumulate(self, batch: Batch, parts: int, last: bool) -> Tensor:
        """Adds a batch's share of the gradient of a step of ``parts`` batches of equal length, the
        ``last`` of which exchanges it with other processes. Returns its share of the mean loss."""
        with self._held_back() if not last else nullcontext():
            loss = self.loss(batch) / parts
            self.scaler.scale(loss).backward()
        return loss.detach()

    def loss(self, batch: Batch) -> Tensor:
        images = self._to_device(batch.images)
        targets = batch.targets.to(self.group.device, non_blocking=True)
        with self._autocast():
            output = self._network(images)
        # Targets that are probabilities are smoothed already.
        smoothing = 0.0 if batch.soft else self.recipe.label_smoothing
        return F.cross_entropy(output.float(), targets, label_smoothing=smoothing)

    def update(self, updates: int) -> None:
        """Moves the weights and their average. ``updates``: how many there were before."""
        if self.recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(updates)

    def evaluate(self, batches: Iterable[Batch], size: int = 32, rounds: int = 0) -> Score:
        """Of the averaged weights, as ``evaluation.evaluate``. A compiled network runs uncompiled
        here."""
        eager = torch.compiler.set_stance("force_eager") if self.recipe.compile else nullcontext()
        self.average.share(self.group)
        with eager, self.average.in_place(), self._autocast():
            return evaluate(self.model, batches, self._to_device, self.group, size, rounds)

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict with averaged weights, on the CPU. Every process calls it."""
        with self.average.in_place():
            state = wrapping.whole(self.model.state_dict())
            return {name: t.detach().to("cpu", copy=True) for name, t in state.items()}

    def state(self) -> dict[str, Any]:
        """For ``load``, with whole tensors. Every process calls it."""
        return wrapping.whole(
            {
                "network": self.model.state_dict(),
                "average": self.average.tensors,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
        )

    def load(self, state: dict[str, Any]) -> None:
        """Raises RecipeError for a state that does not fit."""
        try:
            wrapping.load_network(self.model, state["network"])
            self.average.load(state["average"])
            wrapping.load_optimizer(self.optimizer, state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise RecipeError(f"it does not fit the network: {error}") from error

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _PRECISIONS.get(self.recipe.amp or "no")
        device = self.group.device.type
        return nullcontext() if dtype is None else torch.autocast(device, dtype)

    def _held_back(self) -> AbstractContextManager[object]:
        if isinstance(self._network, DistributedDataParallel):
            return self._network.no_sync()
        return nullcontext()
