"""A photograph, and what a network sees of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

# Of the training images of ImageNet; what networks expect that do not say otherwise.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def default_path() -> Path:
    """The photograph that matplotlib ships: Grace Hopper in uniform, public domain."""
    import matplotlib

    return Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")


def read(path: str | Path) -> Tensor:
    """(3, H, W), float32 in 0..1. Raises OSError for what is no picture."""
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def normalise(
    images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Tensor:
    shape = (1, 3, 1, 1)
    return (images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def whole(photo: Tensor, resolution: int) -> Tensor:
    """(1, 3, R, R): the middle of the photograph, its shorter side resized to 8/7 R."""
    _, height, width = photo.shape
    scale = resolution * 8 / 7 / min(height, width)
    size = max(resolution, round(height * scale)), max(resolution, round(width * scale))
    resized = _resize(photo[None], size)
    top, left = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    return resized[:, :, top : top + resolution, left : left + resolution]


def crops(photo: Tensor, resolution: int, count: int, generator: torch.Generator) -> Tensor:
    """(count, 3, R, R): random square parts of the photograph, half of them mirrored."""
    _, height, width = photo.shape
    found = []
    for _ in range(count):
        draw = torch.rand(4, generator=generator).tolist()
        side = max(1, round(min(height, width) * (0.3 + 0.7 * draw[0])))
        top, left = round(draw[1] * (height - side)), round(draw[2] * (width - side))
        part = photo[None, :, top : top + side, left : left + side]
        part = part.flip(3) if draw[3] < 0.5 else part
        found.append(_resize(part, (resolution, resolution)))
    return torch.cat(found)


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    resized = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)
