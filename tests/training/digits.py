"""A small EfficientNetV2 that learns scikit-learn's digits: seconds, on one thread."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import effv2_kernels as ek

from .few_blocks import ENOUGH, python_ref_network

EPOCHS, BATCH, RATE, SIZE = 12, 64, 6e-3, 32
_HELD_OUT = 360


@dataclass(frozen=True)
class Learnt:
    """losses: (EPOCHS, steps of an epoch), of each step's batch; accuracy: of images held out."""

    losses: Tensor
    accuracy: float

    @property
    def curve(self) -> Tensor:
        """Logarithm of each epoch's mean loss: the last epochs count as much as the first."""
        return self.losses.mean(1).log()


def gap(one: Learnt, other: Learnt) -> float:
    """By what factor two curves differ, less one, in the mean over the epochs."""
    return (one.curve - other.curve).abs().mean().item()


def digits() -> tuple[Tensor, Tensor]:
    """1797 images, (1, SIZE, SIZE), of mean 0 and deviation 1, and their labels, shuffled."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], torch.tensor(found.target)[order]
    return (images - images.mean()) / images.std(), labels


def learn(seed: int, patched: bool, drop_path: float = 0.2) -> Learnt:
    """In a group of processes each takes its part of every batch."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    images, labels = digits()
    torch.manual_seed(seed)
    model = python_ref_network(ENOUGH, drop_path=drop_path, in_chans=1).train()
    if patched:
        ek.patch(model)
    run = model if world == 1 else DistributedDataParallel(model)
    steps = (len(images) - _HELD_OUT) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    torch.manual_seed(1000 * seed + rank)  # of the drop paths
    shuffle = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(EPOCHS):
        order = torch.randperm(len(images) - _HELD_OUT, generator=shuffle) + _HELD_OUT
        for batch in order[: steps * BATCH].split(BATCH):
            own = batch[rank::world]
            loss = F.cross_entropy(run(images[own]), labels[own])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(_mean(loss.detach(), world))
    return Learnt(torch.tensor(losses).view(EPOCHS, steps), _accuracy(model, images, labels))


def _mean(loss: Tensor, world: int) -> float:
    if world > 1:
        dist.all_reduce(loss)
    return loss.item() / world


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    found = model.eval()(images[:_HELD_OUT]).argmax(1)
    return (found == labels[:_HELD_OUT]).double().mean().item()


def in_group(rank: int, seed: int) -> dict[bool, Learnt]:
    return {patched: learn(seed, patched) for patched in (False, True)}
