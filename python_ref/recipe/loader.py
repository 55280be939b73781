"""The loaders of training and validation: worker processes that make whole batches.

Workers live as long as the training: which stage an image is for travels with it, so that a new
stage needs no new loader.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from .batches import Batch, Broken, class_numbers, mix, probabilities, seed_mixing, stacked
from .decoding import UNREADABLE
from .draws import Draw
from .errors import RecipeError
from .schedule import Schedule
from .sources import Source
from .transforms import (
    Making,
    Rule,
    own_random_state,
    seed_everything,
    training_images,
    validation_image,
)

__all__ = ["Batch", "Broken", "Loader", "Normalise", "evaluation_loader", "training_loader"]

Statistics = Literal["half", "imagenet"]
_TRIES = 100  # images in a row that cannot be read
_GRACE = 60  # seconds that a worker goes on after a SIGTERM
_MEAN_AND_DEVIATION = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def training_loader(
    source: Source,
    schedule: Schedule,
    making: Making,
    batches: Iterable[list[Draw]],
    *,
    smoothing: float = 0.0,
    workers: int = 0,
    pin: bool = False,
    prefetch: int = 4,
) -> Loader:
    """A batch for every list of draws, which must be of one stage; the same draws make the same
    batch, whatever was made before and by whichever worker.

    smoothing: of labels, in the targets that are probabilities. prefetch: batches that each worker
    makes ahead. An image that cannot be read is replaced by the next of the source that can, and
    named in the batch. Raises RecipeError, also while it is iterated.
    """
    dataset = _TrainingBatches(source, schedule, making, smoothing)
    return Loader(dataset, batches, workers, pin, prefetch)


def evaluation_loader(
    source: Source,
    size: int,
    rule: Rule = "official",
    *,
    batch: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> Loader:
    """All images of ``source`` in order, or those that process ``rank`` of ``world`` takes: every
    world-th. An image that cannot be read is left out, and named in the batch, which may so become
    empty. It can be iterated any number of times."""
    mine = BatchSampler(range(rank, len(source), world), batch, drop_last=False)
    return Loader(_ValidationBatches(source, size, rule), mine, workers, pin, prefetch=2)


class Loader:
    """Batches in order, from ``workers`` processes, or from this one with 0.

    The random numbers of this process stay as they are. ``close``, or leaving it as a context, ends
    the workers.
    """

    def __init__(
        self,
        dataset: Dataset[Batch | RecipeError],
        batches: Iterable[Sequence[object]],
        workers: int,
        pin: bool,
        prefetch: int,
    ) -> None:
        self._loader: DataLoader | None = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals,
            # From which PyTorch draws a seed for workers; otherwise it is the caller's.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:
        """Raises RecipeError where ``_TRIES`` images in a row cannot be read."""
        if self._loader is None:
            raise ValueError("this loader is closed")
        for batch in self._loader:
            if isinstance(batch, RecipeError):
                raise batch
            yield batch

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._loader = None


class _TrainingBatches(Dataset):
    def __init__(
        self, source: Source, schedule: Schedule, making: Making, smoothing: float
    ) -> None:
        self.source, self.schedule, self.smoothing = source, schedule, smoothing
        self.images = training_images(making, schedule)

    def __getitems__(self, draws: list[Draw]) -> Batch | RecipeError:
        begin = time.perf_counter()
        with own_random_state():
            try:
                batch = self._make(draws)
            except RecipeError as error:  # raised by the main process, where its text stays one
                return error
        return replace(batch, seconds=time.perf_counter() - begin)

    def _make(self, draws: list[Draw]) -> Batch:
        if len({draw.stage for draw in draws}) != 1:
            raise ValueError(f"a batch must be of one stage, got {draws}")
        broken: list[str] = []
        images, labels = zip(*(self._image(draw, broken) for draw in draws), strict=True)
        strength = self.schedule.stages[draws[0].stage].regularisation
        mixes = strength.mixup > 0 or strength.cutmix > 0
        if not mixes and not self.source.several:
            return Batch(stacked(images), class_numbers(labels), broken=tuple(broken))
        targets = probabilities(labels, len(self.source.classes), self.smoothing)
        if not mixes:
            return Batch(stacked(images), targets, broken=tuple(broken))
        seed_mixing(draws[0].seed)
        return Batch(*mix(images, targets, strength), broken=tuple(broken))

    def _image(self, draw: Draw, broken: list[str]) -> tuple[Tensor, tuple[int, ...]]:
        """The image of a draw, or the next one that can be read, and its labels."""
        make = self.images[draw.stage]
        for index in range(draw.index, draw.index + _TRIES):
            index %= len(self.source)
            seed_everything(draw.seed)
            try:
                square = make.cut(self.source.read(index))
            except UNREADABLE as error:
                broken.append(_named(self.source, index, error))
                continue
            try:
                return make.finish(square), self.source.labels(index)
            except Exception as error:
                raise RuntimeError(_named(self.source, index, error)) from error
        raise RecipeError(f"{_TRIES} images in a row cannot be read, the last one {broken[-1]}")


class _ValidationBatches(Dataset):
    def __init__(self, source: Source, size: int, rule: Rule) -> None:
        self.source, self.size, self.rule = source, size, rule

    def __getitems__(self, indices: list[int]) -> Batch:
        begin = time.perf_counter()
        images, labels, broken = [], [], []
        for index in indices:
            try:
                images.append(validation_image(self.source.read(index), self.size, self.rule))
                labels.append(self.source.labels(index))
            except UNREADABLE as error:
                broken.append(_named(self.source, index, error))
        several = self.source.several
        targets = (
            probabilities(labels, len(self.source.classes), 0.0)
            if several
            else class_numbers(labels)
        )
        empty = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        pixels = stacked(images) if images else empty
        return Batch(pixels, targets, time.perf_counter() - begin, tuple(broken))


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


def _named(source: Source, index: int, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{source.where(index)}: {reason}"


def _as_it_is(batch: Batch | RecipeError) -> Batch | RecipeError:
    """A batch is collated where it is made."""
    return batch


def _leave_signals(worker: int) -> None:
    """A signal to the whole group (Ctrl-C, a scheduler's SIGTERM) is for the main process, which
    ends its workers once it has written a checkpoint; but no worker outlives a SIGTERM by long."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
