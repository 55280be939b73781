"""From the bytes of a batch to the numbers that a network takes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Statistics = Literal["half", "imagenet"]
_MEAN_AND_DEVIATION = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Normalise:
    """(n, 3, size, size) uint8 from the CPU to a device, in ``dtype`` and the channels-last format,
    as (pixel / 255 - mean) / standard deviation, computed on the device in float32.

    statistics: ``"half"``, of S, M, L and XL, whose pixels become -1 to 1; ``"imagenet"``, of B0 to
    B3 and of EfficientNet (V1).
    """

    def __init__(
        self,
        statistics: Statistics,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
    ) -> None:
        mean, deviation = torch.tensor(_MEAN_AND_DEVIATION[statistics], dtype=torch.float64)
        self.device, self.dtype = torch.device(device), dtype
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        shape = (3, 1, 1)
        self._scale = (1 / (255 * deviation)).view(shape).to(self.device, torch.float32)
        self._shift = (-mean / deviation).view(shape).to(self.device, torch.float32)

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        out = torch.empty_like(images, dtype=self.dtype, memory_format=self.format)
        # One pass: a kernel reads bytes and writes the normalised numbers.
        return torch.addcmul(self._shift, images, self._scale, out=out)
