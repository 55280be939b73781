"""Progressive learning as plain data: image size and regularisation of every stage of a training.

Source: EfficientNetV2 (arXiv 2104.00298) section 4, algorithm 1 and table 6; the official code
(google/automl, ``efficientnetv2/``), which differs in places, is offered beside it by name.
"""

from __future__ import annotations

import json
import math
import os
import random
from bisect import bisect_right
from dataclasses import asdict, astuple, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Literal, get_args

from .errors import RecipeError

Source = Literal["paper", "official"]
Policy = Literal["randaugment", "autoaugment", "none"]
SMALLEST = 32  # pixels: one output pixel of a network


@dataclass(frozen=True)
class Regularisation:
    """magnitude: of RandAugment, 0 to 30 where 10 is what its authors call full strength. mixup,
    cutmix: alpha of the Beta distribution that mixes two images, 0 for none. dropout: the rate
    before the classifier."""

    magnitude: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    dropout: float = 0.0

    def towards(self, other: Regularisation, part: float) -> Regularisation:
        """``part`` of the way to ``other``."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Regularisation(*(a + (b - a) * part for a, b in pairs))


@dataclass(frozen=True)
class Stage:
    """epochs: how long it lasts. size: of the square images, in pixels. batch: its images a step,
    as a multiple of what the recipe says."""

    epochs: float
    size: int
    regularisation: Regularisation
    batch: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """The stages of a training in order. ``policy`` is how images are augmented before mixing; the
    magnitude is RandAugment's alone."""

    name: str
    stages: tuple[Stage, ...]
    policy: Policy = "randaugment"

    def __post_init__(self) -> None:
        if not self.stages:
            raise RecipeError(f"schedule {self.name} has no stage")
        for stage in self.stages:
            if stage.size < SMALLEST:
                raise RecipeError(
                    f"an image size of {stage.size} is too small: at least {SMALLEST} pixels"
                )
            if not (stage.epochs > 0 and math.isfinite(stage.epochs)):
                raise RecipeError(f"a stage of {stage.epochs} epochs: it must be above 0")

    @property
    def epochs(self) -> float:
        return self.ends[-1]

    @property
    def ends(self) -> tuple[float, ...]:
        """The epoch at which each stage ends."""
        return tuple(accumulate(stage.epochs for stage in self.stages))

    def index(self, epoch: float) -> int:
        """Which stage an epoch (from 0, with fractions) is in; the last one, after the end."""
        if not epoch >= 0:
            raise ValueError(f"epochs count from 0, got {epoch}")
        return min(bisect_right(self.ends, epoch), len(self.stages) - 1)

    def at(self, epoch: float) -> Stage:
        return self.stages[self.index(epoch)]

    def with_larger_batches(self, limit: float = math.inf) -> Schedule:
        """Batches that grow as images shrink, so that each has about the pixels of one with the
        largest images, and with them its memory; by ``limit`` times at most."""
        largest = max(stage.size for stage in self.stages)
        return replace(
            self,
            stages=tuple(
                replace(stage, batch=max(1.0, min((largest / stage.size) ** 2, limit)))
                for stage in self.stages
            ),
        )

    def __str__(self) -> str:
        """As a table."""
        head = ("stage", "epochs", "size", "RandAugment", "mixup", "cutmix", "dropout", "batch")
        rows: list[tuple[str, ...]] = [head]
        begin = 0.0
        for number, (stage, end) in enumerate(zip(self.stages, self.ends, strict=True), 1):
            by = stage.regularisation
            magnitude = f"{by.magnitude:.4g}" if self.policy == "randaugment" else self.policy
            rates = (f"{rate:.3g}" for rate in (by.mixup, by.cutmix, by.dropout))
            epochs = f"{begin:.4g} to {end:.4g}"
            rows.append(
                (str(number), epochs, str(stage.size), magnitude, *rates, f"x{stage.batch:.3g}")
            )
            begin = end
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows)
        return "\n".join((f"schedule {self.name}", *lines))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """The inverse of ``to_json``. Raises RecipeError for what is none."""
        try:
            found = json.loads(text)
            stages = tuple(
                Stage(**{**stage, "regularisation": Regularisation(**stage["regularisation"])})
                for stage in found.pop("stages")
            )
            if found.get("policy", "none") not in get_args(Policy):
                raise ValueError(f"policy {found['policy']!r}")
            return cls(stages=stages, **found)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecipeError(f"this is no schedule: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        Path(path).write_text(self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Schedule:
        try:
            return cls.from_json(Path(path).read_text())
        except (OSError, RecipeError) as error:
            raise RecipeError(f"{os.fspath(path)}: {error}") from error


def progressive(
    name: str,
    sizes: tuple[int, int],
    regularisation: tuple[Regularisation, Regularisation],
    epochs: float,
    *,
    source: Source = "paper",
    stages: int = 4,
    multiple: int = 1,
    adaptive: bool = True,
    random_resize: float | None = None,
    seed: int = 0,
    policy: Policy = "randaugment",
) -> Schedule:
    """A schedule from the first and the last of its sizes and regularisations.

    source: ``"paper"``, algorithm 1: stage i of M (from 0) lies i / (M - 1) of the way between the
        two. ``"official"``: sizes lie (i + 1) / M of the way, so that the first one never occurs,
        and are rounded down; regularisation runs as in the paper.
    stages: M; all are equally long.
    multiple: sizes are rounded to multiples of it.
    adaptive: False keeps the last regularisation all the time (table 13).
    random_resize: another size, from all between the two, every so many epochs, in place of
        ``stages`` (table 13, second row); adaptive regularisation follows the size.
    Raises RecipeError for values that make no schedule.
    """
    if stages < 1 or multiple < 1:
        raise RecipeError(f"stages and multiple must be at least 1, got {stages} and {multiple}")
    if not epochs > 0:
        raise RecipeError(f"epochs must be above 0, got {epochs}")
    if sizes[0] > sizes[1]:
        raise RecipeError(f"images must not shrink: {sizes[0]} to {sizes[1]} pixels")
    if random_resize is not None:
        parts = _random_parts(epochs, random_resize, seed)
    elif source == "paper":
        parts = [(1.0 if stages == 1 else i / (stages - 1),) * 2 for i in range(stages)]
    else:
        ends = [(i + 1) / stages for i in range(stages)]
        parts = [(end, 1.0 if stages == 1 else i / (stages - 1)) for i, end in enumerate(ends)]
    lengths = [epochs / len(parts)] * len(parts)
    if random_resize is not None:
        lengths = [min(random_resize, epochs - i * random_resize) for i in range(len(parts))]

    def size(part: float) -> int:
        exact = sizes[0] + (sizes[1] - sizes[0]) * part
        if multiple > 1:
            return max(multiple, round(exact / multiple) * multiple)
        return math.floor(exact + 1e-9) if source == "official" else round(exact)

    weak, strong = regularisation
    made = tuple(
        Stage(length, size(part), weak.towards(strong, strength) if adaptive else strong)
        for length, (part, strength) in zip(lengths, parts, strict=True)
    )
    return Schedule(name, made, policy)


def _random_parts(epochs: float, every: float, seed: int) -> list[tuple[float, float]]:
    if not every > 0:
        raise RecipeError(f"random_resize must be above 0 epochs, got {every}")
    draw = random.Random(seed)
    return [
        (part, part) for part in (draw.random() for _ in range(math.ceil(epochs / every - 1e-9)))
    ]


def fixed(
    name: str,
    size: int,
    regularisation: Regularisation,
    epochs: float,
    policy: Policy = "randaugment",
) -> Schedule:
    """One stage: no progressive learning."""
    return Schedule(name, (Stage(epochs, size, regularisation),), policy)
