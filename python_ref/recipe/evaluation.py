"""How good a network is on images that it was not trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .groups import Group
from .loader import Batch


@dataclass(frozen=True)
class Score:
    """top1, top5: fractions of ``images`` images. loss: their mean cross entropy, not smoothed."""

    top1: float
    top5: float
    loss: float
    images: int
    seconds: float


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    to_device: Callable[[Tensor], Tensor],
    group: Group,
) -> Score:
    """The network, in evaluation, on every process's share of the batches.

    An image of several labels counts as right where the first guess is one of them, or one of the
    first five is.
    """
    begin = time.perf_counter()
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=group.device)
    for batch in batches:
        targets = batch.targets.to(group.device, non_blocking=True)
        output = model(to_device(batch.images)).float()
        guesses = output.topk(min(5, output.shape[1]), dim=1).indices
        right = targets.gather(1, guesses) > 0 if batch.soft else guesses == targets[:, None]
        loss = F.cross_entropy(output, targets, reduction="sum")
        found = (right[:, 0].sum(), right.any(1).sum(), loss, torch.tensor(len(targets)))
        sums += torch.stack([value.double().to(group.device) for value in found])
    model.train(training)
    first, five, loss, images = group.sum(sums).tolist()
    count = max(images, 1.0)
    seconds = time.perf_counter() - begin
    return Score(first / count, five / count, loss / count, int(images), seconds)
