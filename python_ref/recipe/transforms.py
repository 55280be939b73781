"""How a training image and a validation image are made of a file, each by the official rules.

Source: EfficientNetV2 (arXiv 2104.00298) and its code (google/automl, ``efficientnetv2/``). All
images leave here as uint8, and are normalised on the device that trains.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .decoding import Box, Decoder, Interpolation, cut
from .extras import extra
from .schedule import Policy, Schedule, Stage

with extra():
    from PIL import Image
    from timm.data.auto_augment import (
        AugmentOp,
        RandAugment,
        auto_augment_transform,
        rand_augment_ops,
    )
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional

Rule = Literal["official", "legacy"]
GREY = 128  # what augmentation fills in
_SQUASHED = 320  # pixels: the official rule for validation images of this size and above
_SMALLEST = 128  # pixels: of the paper's first stage
_MARGIN = 32  # pixels that the central crop leaves off, of size + 32, from 224 pixels on
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# The official sixteen operations, but for Cutout; timm gives them the official ranges.
OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY"),
    *("TranslateX", "TranslateY"),
)
FULL = 10.0  # RandAugment's magnitude that is called full strength
TRANSLATION = 100  # pixels at full strength, whatever the image's size
CUTOUT = 40  # pixels at full strength, from the centre to a side


@dataclass(frozen=True)
class Making:
    """How training images are made.

    min_area: the least share of the image's area that a random crop has. ratio: width over height
    of the crop, from and to. crop: False squashes the whole image instead, as the official
    fine-tuning does. flip: how often an image is mirrored. erase: how often a rectangle of an image
    is made grey (random erasing). cutout: put noise into a square of half the image's side, as the
    official fine-tuning does. decoder: ``"pil"`` decodes a JPEG at the scale of the stage, ``"tv"``
    is torchvision's.
    """

    min_area: float = 0.05
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    crop: bool = True
    flip: float = 0.5
    erase: float = 0.0
    cutout: bool = False
    decoder: Decoder = "pil"

    def choose_box(self, width: int, height: int) -> Box:
        """The part of an image that is shown, by PyTorch's random numbers."""
        if not self.crop:
            return whole_box(width, height)
        return random_box(self.min_area, self.ratio, width, height)


#: Of S, M, L and XL, and of B0 to B3 as of EfficientNet (V1).
OFFICIAL = Making()
LEGACY = Making(min_area=0.08, interpolation="bicubic")


class TrainingImage:
    """Makes an image of one stage, (size, size, 3) uint8, from its file and the random numbers of
    Python, NumPy and PyTorch, in that order of steps: crop, flip, augmentation, erasing."""

    def __init__(self, making: Making, stage: Stage, policy: Policy) -> None:
        self.making, self.size = making, stage.size
        magnitude = stage.regularisation.magnitude
        self.augment = augmentation(policy, magnitude, making.interpolation, stage.size)
        self.erase = v2.RandomErasing(making.erase, value=GREY, inplace=True)

    def __call__(self, encoded: bytes | Image.Image) -> Tensor:
        """Raises one of ``decoding.UNREADABLE`` for what is no image."""
        return self.finish(self.cut(encoded))

    def cut(self, encoded: bytes | Image.Image) -> Tensor:
        """The decoded square that the crop takes, (3, size, size) uint8."""
        make = self.making
        return cut(encoded, make.choose_box, self.size, make.interpolation, make.decoder)

    def finish(self, square: Tensor) -> Tensor:
        if random.random() < self.making.flip:
            square = functional.horizontal_flip(square)
        if self.augment is not None:
            image = self.augment(functional.to_pil_image(square))
            square = functional.pil_to_tensor(image)
        if self.making.erase:
            square = self.erase(square)
        if self.making.cutout:
            square = _cutout(square, self.size // 4)
        return square.permute(1, 2, 0)


def training_images(making: Making, schedule: Schedule) -> list[TrainingImage]:
    """For every stage of a schedule, how its images are made."""
    return [TrainingImage(making, stage, schedule.policy) for stage in schedule.stages]


def validation_image(encoded: bytes | Image.Image, size: int, rule: Rule = "official") -> Tensor:
    """(size, size, 3) uint8, by the official rules for validation: below 320 pixels the central
    crop of size / (size + 32) of the shorter side, at less than 224 that of 224; from 320 on the
    whole image, squashed. rule: ``"legacy"``, of B0 to B3 and of EfficientNet (V1), always crops,
    and interpolates bicubically. Raises one of ``decoding.UNREADABLE`` for what is no image."""
    legacy = rule == "legacy"
    choose = partial(_central_box, size) if legacy or size < _SQUASHED else whole_box
    return cut(encoded, choose, size, "bicubic" if legacy else "bilinear").permute(1, 2, 0)


def augmentation(
    policy: Policy,
    magnitude: float,
    interpolation: Interpolation = "bilinear",
    size: int = _SMALLEST,
) -> Callable[[Image.Image], Image.Image] | None:
    """RandAugment as the official code has it: two of sixteen operations on every image, without
    noise on the magnitude, which may have fractions and exceed the 10 of full strength; or
    AutoAugment's policy v0, which has no magnitude. None where there is nothing to do. size: of the
    images, in pixels."""
    if policy == "none" or (policy == "randaugment" and magnitude == 0):
        return None
    options = {
        "img_mean": (GREY,) * 3,
        "translate_const": TRANSLATION * of_full(size),
        "interpolation": _FILTERS[interpolation],
        "magnitude_max": max(FULL, magnitude),
    }
    if policy == "autoaugment":
        automatic = auto_augment_transform("v0", options)
        _keep_a_bit(chain.from_iterable(automatic.policy))
        return automatic
    operations = rand_augment_ops(magnitude, prob=1.0, hparams=options, transforms=[*OPERATIONS])
    _keep_a_bit(operations)
    return RandAugment([*operations, GreySquare(round(CUTOUT * of_full(size) * magnitude / FULL))])


def of_full(size: int) -> float:
    """What pixels of augmentation are multiplied by: the official ones are for images of 128 pixels
    at least, and leave nothing of smaller ones."""
    return min(1.0, size / _SMALLEST)


def _keep_a_bit(operations: Iterable[AugmentOp]) -> None:
    """Posterize keeps fewer bits of a pixel the weaker it is, officially none at all below a
    magnitude of 2.5, which is a black image (and which Pillow refuses): here one at least."""
    for operation in operations:
        if operation.name == "Posterize":
            operation.level_fn = _bits


def _bits(level: float, _: object) -> tuple[int]:
    return (max(1, int(level / FULL * 4)),)


@dataclass(frozen=True)
class GreySquare:
    """RandAugment's Cutout, the one operation that timm's lacks. reach: pixels from the centre of
    the square, which is anywhere in the image, to its sides."""

    reach: int

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top, right, bottom = square_around(image.width, image.height, self.reach)
        image = image.copy()
        image.paste((GREY,) * 3, (left, top, right, bottom))
        return image


@contextmanager
def own_random_state() -> Iterator[None]:
    """Leaves the random numbers of Python, NumPy and PyTorch (on the CPU) as they were."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def seed_everything(seed: int) -> None:
    """What ``own_random_state`` keeps; torch.manual_seed would seed GPUs as well."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def random_box(min_area: float, ratio: Sequence[float], width: int, height: int) -> Box:
    shape = torch.empty(1, 1, 1).expand(1, height, width)
    top, left, rows, columns = v2.RandomResizedCrop.get_params(shape, [min_area, 1.0], [*ratio])
    return left, top, columns, rows


def _central_box(size: int, width: int, height: int) -> Box:
    # Smaller sizes, which the rule is not made for, keep the share that 224 pixels keep.
    margin = min(_MARGIN, size / 7)
    side = int(size / (size + margin) * min(width, height))
    return (width - side + 1) // 2, (height - side + 1) // 2, side, side


def whole_box(width: int, height: int) -> Box:
    return 0, 0, width, height


def _cutout(image: Tensor, reach: int) -> Tensor:
    """Noise in a square of (channels, height, width) uint8."""
    left, top, right, bottom = square_around(image.shape[2], image.shape[1], reach)
    noise = torch.randint(256, (image.shape[0], bottom - top, right - left), dtype=torch.uint8)
    return functional.erase(image, top, left, bottom - top, right - left, noise, inplace=True)


def square_around(width: int, height: int, reach: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a square around any pixel, as far as it is in the image."""
    x, y = random.randrange(width), random.randrange(height)
    return max(0, x - reach), max(0, y - reach), min(width, x + reach), min(height, y + reach)
