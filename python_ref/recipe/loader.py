"""The loaders of training and validation: worker processes that make whole batches.

Workers live as long as the training: which stage an image is for travels with it, so that a new
stage needs no new loader.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from .batches import Batch, Broken, class_numbers, mix, probabilities, seed_mixing, stacked
from .decoding import UNREADABLE
from .draws import Draw
from .errors import RecipeError
from .normalise import Normalise, Statistics
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

if TYPE_CHECKING:
    from PIL import Image

    from .dali import DaliLoader

__all__ = [
    "Batch",
    "Broken",
    "Loader",
    "Normalise",
    "Statistics",
    "evaluation_loader",
    "training_loader",
]

_Read = TypeVar("_Read")
_TRIES = 100  # images in a row that cannot be read


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
) -> Loader | DaliLoader:
    """A batch for every list of draws, which must be of one stage; the same draws make the same
    batch, whatever was made before and by whichever worker.

    smoothing: of labels, in the targets that are probabilities. prefetch: batches that each worker
    makes ahead. An image that cannot be read is replaced by the next of the source that can, and
    named in the batch. Raises RecipeError, also while it is iterated.
    """
    if making.decoder == "dali":
        from .dali import dali_loader

        return dali_loader(source, schedule, making, batches, smoothing, workers, prefetch)
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
        batches: Iterable[list[Any]],
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
        # Not left to the garbage collector: it finalises the queues first, by which workers are
        # told to end.
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
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
        make = self.images[draw.stage]
        index, square = first_readable(self.source, draw, make.cut, broken)
        try:
            return make.finish(square), self.source.labels(index)
        except Exception as error:
            raise RuntimeError(_named(self.source, index, error)) from error


def first_readable(
    source: Source, draw: Draw, read: Callable[[bytes | Image.Image], _Read], broken: list[str]
) -> tuple[int, _Read]:
    """The position and what ``read`` makes, from the random numbers of ``draw``, of its image, or
    of the next one of the source for which that raises none of UNREADABLE. Names the others in
    ``broken``. Raises RecipeError after ``_TRIES`` of them."""
    for index in range(draw.index, draw.index + _TRIES):
        index %= len(source)
        seed_everything(draw.seed)
        try:
            return index, read(source.read(index))
        except UNREADABLE as error:
            broken.append(_named(source, index, error))
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


def _named(source: Source, index: int, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = re.sub(r"<_io\.BytesIO object at \w+>", "it", reason)
    return f"{source.where(index)}: {reason}"


def _as_it_is(batch: Any) -> Any:
    """A batch is collated where it is made."""
    return batch


def _leave_signals(worker: int) -> None:
    """A signal to the whole group (Ctrl-C, a scheduler's SIGTERM) is for the main process, which
    ends its workers once it has written a checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_the_parent_says_so, daemon=True).start()


def _end_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        continue
    os._exit(0)
