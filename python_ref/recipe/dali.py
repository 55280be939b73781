"""The training loader whose images NVIDIA DALI makes: on a GPU, where it decodes the crop alone.

Workers read files and draw random numbers, the same as for the other decoders, and DALI decodes,
crops, resizes, mirrors and augments by them. Its operations are those of ``transforms`` but for
rounding, and for Equalize, which follows OpenCV. What it has no counterpart of is refused:
AutoAugment, random erasing and the official fine-tuning's cutout. A JPEG that ends too early, and a
file that is no plain JPEG, is PIL's to decode, in the worker.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .batches import Batch, class_numbers, keep_and_mix, probabilities, seed_mixing
from .dali_pipeline import build_pipeline
from .decoding import Box, Interpolation, cut
from .draws import Draw
from .errors import RecipeError
from .extras import extra
from .loader import Loader, first_readable
from .schedule import Schedule
from .sources import Source
from .transforms import (
    CUTOUT,
    FULL,
    OPERATIONS,
    Making,
    of_full,
    own_random_state,
    square_around,
)

with extra():
    from PIL import ExifTags, Image
    from timm.data.mixup import Mixup

_CHOICES = len(OPERATIONS) + 1  # with Cutout
_IDENTITY = _CHOICES
_SIGNED = {OPERATIONS.index(name) for name in OPERATIONS if name[:5] in ("Rotat", "Shear", "Trans")}
_ENDING = b"\xff\xd9"  # of a JPEG; some programs pad the file after it


def dali_loader(
    source: Source,
    schedule: Schedule,
    making: Making,
    batches: Iterable[list[Draw]],
    smoothing: float,
    workers: int,
    prefetch: int,
) -> DaliLoader:
    """As ``training_loader``, but that images come on the current GPU where there is one. Raises
    RecipeError for what DALI does not do."""
    if making.erase or making.cutout or schedule.policy == "autoaugment":
        raise RecipeError(
            "--loader dali has no AutoAugment, random erasing and cutout: use --loader pil or tv"
        )
    plans = Loader(_Plans(source, schedule, making), batches, workers, False, prefetch)
    return DaliLoader(plans, workers, source, schedule, making.interpolation, smoothing)


@dataclass(frozen=True)
class _Plan:
    """A batch to be made. encoded: the files, one after another, (bytes,) uint8, and their lengths.
    numbers: for every input of the pipeline but these, int32 with one row for each image."""

    stage: int
    seed: int
    encoded: Tensor
    lengths: list[int]
    numbers: dict[str, np.ndarray]
    labels: list[tuple[int, ...]]
    broken: tuple[str, ...]
    seconds: float


class _Plans(Dataset):
    """What workers do: read, and draw the random numbers in the order of ``TrainingImage``."""

    def __init__(self, source: Source, schedule: Schedule, making: Making) -> None:
        self.source, self.schedule, self.making = source, schedule, making

    def __getitems__(self, draws: list[Draw]) -> _Plan | RecipeError:
        begin = time.perf_counter()
        with own_random_state():
            try:
                files, rows, labels, broken = self._draw(draws)
            except RecipeError as error:
                return error
        numbers = {name: np.array([row[name] for row in rows], np.int32) for name in rows[0]}
        encoded = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
        seconds = time.perf_counter() - begin
        lengths = list(map(len, files))
        first = draws[0]
        return _Plan(
            first.stage, first.seed, encoded, lengths, numbers, labels, tuple(broken), seconds
        )

    def _draw(self, draws: list[Draw]) -> tuple[list[bytes], list[dict], list, list[str]]:
        files, rows, labels = [], [], []
        broken: list[str] = []
        for draw in draws:
            stage = self.schedule.stages[draw.stage]

            def read(encoded: bytes | Image.Image, size: int = stage.size) -> tuple[bytes, Box]:
                return _readable(encoded, size, self.making)

            index, (file, box) = first_readable(self.source, draw, read, broken)
            magnitude = stage.regularisation.magnitude if self.schedule.policy != "none" else 0.0
            row = {"anchor": box[:2], "shape": box[2:], "stage": draw.stage}
            row |= {"size": (stage.size, stage.size)}
            row |= {"mirrored": random.random() < self.making.flip}
            rows.append(row | _operations_of(magnitude, stage.size))
            files.append(file)
            labels.append(self.source.labels(index))
        return files, rows, labels, broken


def _readable(encoded: bytes | Image.Image, size: int, making: Making) -> tuple[bytes, Box]:
    """A file that DALI decodes, and the box of it that is shown. Raises one of UNREADABLE."""
    if isinstance(encoded, bytes):
        image = Image.open(io.BytesIO(encoded))
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        plain = image.format == "JPEG" and image.mode in ("L", "RGB")
        if plain and upright and encoded.rstrip(b"\0").endswith(_ENDING):
            return encoded, making.choose_box(*image.size)
    made = cut(encoded, making.choose_box, size, making.interpolation)
    pixels = made.permute(1, 2, 0).numpy().tobytes()
    return f"P6 {size} {size} 255\n".encode() + pixels, (0, 0, size, size)


def _operations_of(magnitude: float, size: int) -> dict[str, Any]:
    """Which two operations an image has, in which direction, and where a Cutout is."""
    chosen = np.random.choice(_CHOICES, 2).tolist() if magnitude else [_IDENTITY] * 2
    row: dict[str, Any] = {}
    for turn, operation in enumerate(chosen):
        left, top, right, bottom = 0, 0, 1, 1
        row[f"operation{turn}"] = operation
        row[f"negative{turn}"] = operation in _SIGNED and random.random() > 0.5
        if operation == len(OPERATIONS):
            reach = round(CUTOUT * of_full(size) * magnitude / FULL)
            left, top, right, bottom = square_around(size, size, reach)
        row[f"corner{turn}"] = (top, left)
        row[f"extent{turn}"] = (bottom - top, right - left)
    return row


class DaliLoader:
    """Batches in order, as ``Loader`` gives them; images are on the GPU where there is one."""

    def __init__(
        self,
        plans: Loader,
        workers: int,
        source: Source,
        schedule: Schedule,
        interpolation: Interpolation,
        smoothing: float,
    ) -> None:
        self._workers = workers
        self._plans, self._source, self._schedule = plans, source, schedule
        self._interpolation: Interpolation = interpolation
        self._smoothing = smoothing
        self._pipeline: Any = None
        self._largest = 0

    def __iter__(self) -> Iterator[Batch]:
        """Raises RecipeError for a batch that DALI cannot decode, and as ``Loader``."""
        plan: Any  # a loader of plans is one of batches, to mypy
        for plan in self._plans:
            begin = time.perf_counter()
            images = self._run(plan)
            images, targets = self._mixed(images, plan)
            # The slower of the workers together and of DALI, as that of one worker of so many.
            own = (time.perf_counter() - begin) * max(1, self._workers)
            seconds = max(plan.seconds, own)
            yield Batch(images, targets, seconds, plan.broken)

    def __enter__(self) -> DaliLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._plans.close()
        self._pipeline = None

    def _run(self, plan: _Plan) -> Tensor:
        """(n, 3, size, size) uint8, channels last."""
        count = len(plan.lengths)
        if count > self._largest:
            self._pipeline = build_pipeline(count, self._schedule, self._interpolation)
            self._largest = count
        files = np.split(plan.encoded.numpy(), np.cumsum(plan.lengths)[:-1])
        self._pipeline.feed_input("encoded", files)
        for name, rows in plan.numbers.items():
            self._pipeline.feed_input(name, list(rows))
        try:
            (images,) = self._pipeline.run()
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise RecipeError(
                f"DALI cannot decode an image of {self._source.name}; --loader pil finds it and "
                f"leaves it out: {reason}"
            ) from error
        # DALI writes the next batch into the same memory.
        return torch.from_dlpack(images.as_tensor()).clone().permute(0, 3, 1, 2)

    def _mixed(self, images: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
        strength = self._schedule.stages[plan.stage].regularisation
        mixes = strength.mixup > 0 or strength.cutmix > 0
        if not mixes and not self._source.several:
            return images, class_numbers(plan.labels)
        targets = probabilities(plan.labels, len(self._source.classes), self._smoothing)
        even = len(images) // 2 * 2
        if not mixes or even == 0:
            return images, targets
        alphas = strength.mixup, strength.cutmix
        mixup = Mixup(*alphas, mode="elem", label_smoothing=0.0, num_classes=even)
        with own_random_state():
            seed_mixing(plan.seed)
            mixed, weights = mixup(images[:even].float(), torch.arange(even, device=images.device))
        images[:even] = mixed.round_().to(torch.uint8)
        return images, keep_and_mix(weights.cpu(), targets)
