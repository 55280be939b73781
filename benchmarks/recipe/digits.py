"""Scikit-learn's handwritten digits as images in memory, to train on and held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from python_ref.recipe.sources import Source
from python_ref.recipe.sources.source import Part

from .networks import CLASSES

_LEVELS = 16  # of grey: 0 to 16
_INK, _CANVAS = 32, 64  # pixels of a digit, from the 8 of scikit-learn, and of its background
_SHIFT = 6  # pixels from the centre of the background, at most


class Digits:
    """All 1,797 digits, white on black, each anywhere near the centre. A digit has half the side of
    the image: one that fills it is told as well at a small size as at a large one."""

    name = "digits of scikit-learn"
    classes: Sequence[str] = tuple(map(str, range(CLASSES)))
    several = False

    def __init__(self) -> None:
        pixels, self._labels = load_digits(return_X_y=True)
        grey = (pixels.reshape(-1, 8, 8) * (255 / _LEVELS)).round().astype(np.uint8)
        centre = (_CANVAS - _INK) // 2
        draw = np.random.default_rng(0)
        places = draw.integers(centre - _SHIFT, centre + _SHIFT + 1, (len(grey), 2)).tolist()
        self._images = [
            _on_canvas(Image.fromarray(one), *place)
            for one, place in zip(grey, places, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._images)

    def labels(self, index: int) -> tuple[int, ...]:
        return (int(self._labels[index]),)

    def where(self, index: int) -> str:
        return f"{self.name}, number {index}"

    def read(self, index: int) -> Image.Image:
        return self._images[index]


def _on_canvas(digit: Image.Image, left: int, top: int) -> Image.Image:
    canvas = Image.new("RGB", (_CANVAS, _CANVAS))
    canvas.paste(digit.resize((_INK, _INK), Image.Resampling.BICUBIC), (left, top))
    return canvas


def split(training: int, seed: int) -> tuple[Source, Source]:
    """So many random images to train on, and all others."""
    order = np.random.default_rng(seed).permutation(len(digits := Digits()))
    return Part(digits, order[:training]), Part(digits, order[training:])
