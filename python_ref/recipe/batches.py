"""Batches of images, their targets, mixing, and the account of images that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from .errors import RecipeError
from .extras import extra
from .schedule import Regularisation

with extra():
    from timm.data.mixup import FastCollateMixup


@dataclass(frozen=True)
class Batch:
    """images: (n, 3, size, size) uint8 on the CPU, in any memory format. n may be 0 in validation.
    targets: (n,) int64 classes; or (n, classes) float32 probabilities, label smoothing in them,
    where images are mixed or have several labels. seconds: that a worker was busy making it.
    broken: the file of each image that could not be read, and why.
    """

    images: Tensor
    targets: Tensor
    seconds: float = 0.0
    broken: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return self.images.shape[-1]

    @property
    def soft(self) -> bool:
        """Whether targets are probabilities: label smoothing is in them, not for the loss to do."""
        return self.targets.is_floating_point()

    def pin_memory(self) -> Batch:
        """By this name a DataLoader's pinning thread finds it."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())


@dataclass
class Broken:
    """Counts the images that could not be read, and stops the run (RecipeError) once they are more
    than ``share`` of all that it tried, and at least ``least``. names: each file, and why, once."""

    share: float = 0.01
    least: int = 10
    tried: int = 0
    count: int = 0
    names: dict[str, None] = field(default_factory=dict)

    def add(self, tried: int, names: Sequence[str]) -> list[str]:
        """``tried`` more images, of which these could not be read. Returns the names that are
        new."""
        self.tried += tried
        self.count += len(names)
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        self.names.update(dict.fromkeys(new))
        return new

    def check(self) -> None:
        """Raises RecipeError if they are too many."""
        if self.count >= self.least and self.count > self.share * self.tried:
            raise RecipeError(
                f"{self.count} of {self.tried} images could not be read, more than {self.share:.1%}"
                f"; the last one was {next(reversed(self.names))}"
            )

    def __str__(self) -> str:
        return f"{self.count} of {self.tried} images could not be read"


def stacked(images: Sequence[Tensor]) -> Tensor:
    """(size, size, 3) each, to (n, 3, size, size) in the channels-last format: copied once, within
    a worker straight into the memory that it shares with the main process."""
    return default_collate(list(images)).permute(0, 3, 1, 2)


def class_numbers(labels: Sequence[tuple[int, ...]]) -> Tensor:
    """(n,) int64, of images with one label each."""
    return torch.tensor([label for (label,) in labels], dtype=torch.int64)


def probabilities(labels: Sequence[tuple[int, ...]], classes: int, smoothing: float) -> Tensor:
    """(n, classes) float32: the labels of an image share 1 - smoothing, all classes share the rest
    (of several labels: the paper's multi-label softmax on ImageNet-21k, section 4)."""
    found = torch.zeros(len(labels), classes)
    for row, numbers in zip(found, labels, strict=True):
        row[list(numbers)] = 1 / len(numbers)
    return found.mul_(1 - smoothing).add_(smoothing / classes)


def mix(
    images: Sequence[Tensor], targets: Tensor, strength: Regularisation
) -> tuple[Tensor, Tensor]:
    """Mixes each of n images with the one that lies as far from the end of the batch as it from the
    beginning, by timm: mixup with ``strength.mixup``, CutMix with ``strength.cutmix``, one of both
    for each image where both are above 0 (the official code: each for half of the batch).

    images: n of (size, size, 3) uint8. targets: (n, classes) probabilities. Returns (n, 3, size,
    size) uint8 and the mixed probabilities. The last one of an odd number stays as it is. Draws
    from NumPy's random numbers.
    """
    even = len(images) // 2 * 2
    if even == 0:
        return stacked(images), targets
    # Its own targets are one row for each image: they say how much of itself an image keeps, for
    # targets that timm does not know (several labels).
    collate = FastCollateMixup(
        strength.mixup, strength.cutmix, mode="elem", label_smoothing=0.0, num_classes=even
    )
    pairs = [(image.permute(2, 0, 1), row) for row, image in enumerate(images[:even])]
    mixed, weights = collate(pairs)
    soft = keep_and_mix(weights, targets)
    if even == len(images):
        return mixed, soft
    last = images[-1].permute(2, 0, 1).unsqueeze(0)
    return torch.cat([mixed, last]), soft


def keep_and_mix(weights: Tensor, targets: Tensor) -> Tensor:
    """The targets of a batch that timm mixed, of whose images row i of ``weights`` (m, m) says how
    they are made of the first m ones. Those after them stay."""
    first, rest = targets[: len(weights)], targets[len(weights) :]
    kept = weights.diagonal().unsqueeze(1)
    return torch.cat([kept * first + (1 - kept) * first.flip(0), rest])


def seed_mixing(seed: int) -> None:
    """From the seed of the batch's first image, whose own random numbers are others."""
    np.random.seed((seed + 0x9E3779B9) % 2**32)
