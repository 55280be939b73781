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
    """top1, top5: fractions of ``images`` images. loss: their mean cross entropy, not smoothed.
    broken: what could not be read, by this process."""

    top1: float
    top5: float
    loss: float
    images: int
    seconds: float
    broken: tuple[str, ...] = ()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    to_device: Callable[[Tensor], Tensor],
    group: Group,
    size: int = 32,
    rounds: int = 0,
) -> Score:
    """The network, in evaluation, on every process's share of the batches.

    rounds: batches of the process that has the most. The others run as many, of an image of
        ``size`` pixels that does not count: where weights are sharded, each process takes part in
        what every other computes.

    An image of several labels counts as right where the first guess is one of them, or one of the
    first five is.
    """
    begin = time.perf_counter()
    training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=group.device)
    count, done = 0, 0
    broken: list[str] = []
    for batch in batches:
        done += 1
        broken.extend(batch.broken)
        count += len(batch)
        targets = batch.targets.to(group.device, non_blocking=True)
        output = model(to_device(batch.images)).float()
        guesses = output.topk(min(5, output.shape[1]), dim=1).indices
        right = targets.gather(1, guesses) > 0 if batch.soft else guesses == targets[:, None]
        loss = F.cross_entropy(output, targets, reduction="sum")
        found = (right[:, 0].sum(), right.any(1).sum(), loss)
        sums += torch.stack([value.double() for value in found])
    for _ in range(done, rounds):
        model(to_device(torch.zeros(1, 3, size, size, dtype=torch.uint8)))
    model.train(training)
    first, five, loss, images = group.sum(torch.cat([sums.cpu(), torch.tensor([count])])).tolist()
    of = max(images, 1.0)
    seconds = time.perf_counter() - begin
    return Score(first / of, five / of, loss / of, int(images), seconds, tuple(broken))
