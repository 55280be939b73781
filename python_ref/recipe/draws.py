"""Which images every step of a training takes, and which random numbers make them.

A training is a walk along an endless stream of images: one random order of the data after another.
What a step takes follows from its position in the stream, and what is random about an image from
the run's seed and the image's own position. So nothing of it needs keeping: a run that begins
again at a position goes on as if it had never stopped, with any number of workers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .errors import RecipeError
from .schedule import Schedule


@dataclass(frozen=True)
class Draw:
    """One training image to be made: of which image of the data, from which seed, and by which
    stage of the schedule."""

    index: int
    seed: int
    stage: int


@dataclass(frozen=True)
class Step:
    """One update of the weights, from ``images`` images of all processes together.

    number: from 0. position: of its first image in the stream. stage: of the schedule.
    """

    number: int
    position: int
    images: int
    stage: int

    @property
    def end(self) -> int:
        return self.position + self.images


def seed_of(*what: int | str) -> int:
    """32 bits that are as good as independent for different arguments."""
    text = ":".join(map(str, what)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


class Stream:
    """The steps of a training on ``images`` images by ``schedule``.

    batch: images of a step in a stage whose batches do not grow, of all ``world`` processes
        together, a multiple of ``world * accumulate``.
    accumulate: into how many parts, which follow one another, a process cuts its share of a step.
    Raises RecipeError for a batch that cannot be divided so.
    """

    def __init__(
        self,
        schedule: Schedule,
        images: int,
        batch: int,
        seed: int,
        *,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.schedule = schedule
        self.images = images
        self.accumulate = accumulate
        self._seed = seed
        self._world = world
        parts = world * accumulate
        if batch < parts or batch % parts:
            raise RecipeError(
                f"--batch {batch} cannot be divided among {world} processes "
                f"and {accumulate} parts each: take a multiple of {parts}"
            )
        self._batches = [int(batch * stage.batch) // parts * parts for stage in schedule.stages]
        # The position at which each stage ends; a step that begins before it belongs to the stage.
        self._ends = [math.ceil(end * images - 1e-6) for end in schedule.ends]
        self._order = lru_cache(maxsize=2)(self._new_order)

    @property
    def end(self) -> int:
        """The training is over where a step ends at this position or after it."""
        return self._ends[-1]

    def total_steps(self, number: int = 0, position: int = 0) -> int:
        """Of the whole training, if the first ``number`` steps took ``position`` images."""
        steps = number
        for end, batch in zip(self._ends, self._batches, strict=True):
            count = max(0, math.ceil((end - position) / batch))
            steps, position = steps + count, position + count * batch
        return steps

    def epoch(self, position: int) -> float:
        return position / self.images

    def steps(self, number: int = 0, position: int = 0) -> Iterator[Step]:
        """All steps from the one that has this number and position."""
        while position < self.end:
            stage = next(i for i, end in enumerate(self._ends) if position < end)
            step = Step(number, position, self._batches[stage], stage)
            yield step
            number, position = number + 1, step.end

    def draws(self, rank: int, number: int = 0, position: int = 0) -> Iterator[list[Draw]]:
        """What process ``rank`` takes: ``accumulate`` lists for every step from there on."""
        for step in self.steps(number, position):
            part = step.images // self.accumulate
            for begin in range(step.position, step.end, part):
                yield [
                    Draw(self._index(p), seed_of(self._seed, "image", p), step.stage)
                    for p in range(begin + rank, begin + part, self._world)
                ]

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self.images)
        return int(self._order(epoch)[offset])

    def _new_order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(self._seed, "order", epoch))
        return torch.randperm(self.images, generator=generator)
