"""What is trained for which table of the paper: plain data.

Sources: EfficientNetV2 (arXiv 2104.00298) tables 5, 6, 12, 13 and 14; the published figures are
those of its first version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from python_ref.recipe.schedule import Regularisation, Schedule, fixed, progressive

SEEDS = (1, 2, 3)
EPOCHS = 30.0
BATCH = 16
TRAINING = 200  # images; the other 1,597 digits are held out
SIZES = (48, 96)  # pixels, of the first and the last stage; the paper's V2-S: 128 to 300
MAGNITUDES = (0.0, 5.0)  # of RandAugment; the paper's V2-S: 5 to 15
DROPOUTS = (0.1, 0.2)
STAGES = 4
RANDOM_EVERY = 2.0  # epochs that a random size lasts
COURSE_EVERY = 0.5  # epochs; all stages of a course are a multiple of it
V2, V1, RESNET = "V2, small", "V1, small", "ResNet, small"


@dataclass(frozen=True)
class Plan:
    """How size and regularisation go. sizes, magnitudes: first and last. stages: 1 for one size,
    None for a random size every ``RANDOM_EVERY`` epochs. adaptive: False keeps the last magnitude
    and dropout from the beginning."""

    sizes: tuple[int, int] = SIZES
    magnitudes: tuple[float, float] = MAGNITUDES
    stages: int | None = STAGES
    adaptive: bool = True

    @property
    def name(self) -> str:
        weak, strong = (f"{value:g}" for value in self.magnitudes)
        if self.stages == 1:
            return f"{self.sizes[1]} px, magnitude {strong}"
        how = "random" if self.stages is None else f"{self.stages} stages of"
        magnitude = f"{weak} to {strong}" if self.adaptive else strong
        return f"{how} {self.sizes[0]} to {self.sizes[1]} px, magnitude {magnitude}"

    def schedule(self, epochs: float, seed: int) -> Schedule:
        """seed: of random sizes."""
        weak, strong = map(Regularisation, self.magnitudes, (0.0, 0.0), (0.0, 0.0), DROPOUTS)
        if self.stages == 1:
            return fixed(self.name, self.sizes[1], strong, epochs)
        return progressive(
            self.name,
            self.sizes,
            (weak, strong),
            epochs,
            stages=self.stages or STAGES,
            adaptive=self.adaptive,
            random_resize=RANDOM_EVERY if self.stages is None else None,
            seed=seed,
        )


def one_size(size: int, magnitude: float) -> Plan:
    return Plan((size, size), (magnitude, magnitude), stages=1)


FIXED = one_size(SIZES[1], MAGNITUDES[1])
PROGRESSIVE = Plan()
#: The same without any RandAugment, which is the best that one size has here.
FIXED_PLAIN = one_size(SIZES[1], 0.0)
PROGRESSIVE_PLAIN = Plan(magnitudes=(0.0, 0.0))
NOT_ADAPTIVE = Plan(adaptive=False)
RANDOM = Plan(stages=None)
RANDOM_NOT_ADAPTIVE = Plan(stages=None, adaptive=False)


@dataclass(frozen=True)
class Printed:
    """accuracy: in percent, of the baseline and of the other. hours: as long as each took."""

    network: str
    accuracy: tuple[float, float]
    hours: tuple[float, float] | None = None


@dataclass(frozen=True)
class Pair:
    """A line of table 12 or 13: our two plans, then what the paper printed of its two."""

    title: str
    network: str
    plans: tuple[Plan, Plan]
    paper: Printed | None = None


#: Size, RandAugment magnitude -> top-1 in percent of the paper's; and where ours lies.
TABLE_5 = {
    (128, 5): 78.3, (192, 5): 81.2, (300, 5): 82.5,
    (128, 10): 78.0, (192, 10): 81.6, (300, 10): 82.7,
    (128, 15): 77.7, (192, 15): 81.5, (300, 15): 83.2,
}  # fmt: skip
OUR_SIZES = {128: 48, 192: 72, 300: 96}
OUR_MAGNITUDES = {5: 0.0, 10: 5.0, 15: 10.0}
TABLE_12 = (
    Pair("EfficientNetV2", V2, (FIXED, PROGRESSIVE)),
    Pair("EfficientNetV2, no RandAugment", V2, (FIXED_PLAIN, PROGRESSIVE_PLAIN)),
    Pair(
        "EfficientNet (V1)",
        V1,
        (FIXED, PROGRESSIVE),
        Printed("B4", (82.9, 83.1), (20.8, 9.4)),
    ),
    Pair(
        "ResNet",
        RESNET,
        (FIXED, PROGRESSIVE),
        Printed("ResNet50 at 380", (80.0, 80.3), (14.3, 5.8)),
    ),
)
TABLE_13 = (
    Pair("progressive", V2, (NOT_ADAPTIVE, PROGRESSIVE), Printed("S", (84.3, 85.1))),
    Pair("random", V2, (RANDOM_NOT_ADAPTIVE, RANDOM), Printed("S", (83.5, 84.2))),
)
#: First size, stages -> hours and top-1 of the paper's.
TABLE_14 = {
    (128, 4): (6.2, 83.24), (128, 8): (6.3, 83.11), (128, 16): (7.0, 83.20),
    (256, 4): (8.1, 83.15), (256, 8): (8.5, 83.07), (256, 16): (9.4, 83.23),
}  # fmt: skip
OUR_FIRST_SIZES = {128: SIZES[0], 256: 80}


@dataclass(frozen=True)
class Run:
    """One training. course: evaluate every ``COURSE_EVERY`` epochs as well, which
    takes time of its own."""

    network: str
    plan: Plan
    seed: int
    epochs: float
    training: int
    course: bool = False


def tables() -> dict[int, list[tuple[str, Plan]]]:
    """Network and plan of all that each table needs; 6 only says what the schedules are."""
    return {
        5: [(V2, one_size(s, m)) for m in OUR_MAGNITUDES.values() for s in OUR_SIZES.values()],
        12: [(pair.network, plan) for pair in TABLE_12 for plan in pair.plans],
        13: [(pair.network, plan) for pair in TABLE_13 for plan in pair.plans],
        14: [
            (V2, Plan((OUR_FIRST_SIZES[first], SIZES[1]), stages=stages))
            for first, stages in TABLE_14
        ],
    }


def runs(chosen: tuple[int, ...], seeds: tuple[int, ...]) -> Iterator[Run]:
    """All trainings of these tables (all, if none is named), each once, seed by seed; and the two
    whose course is drawn. Raises ValueError for a table that is none of these."""
    needed = tables()
    unknown = set(chosen) - set(needed)
    if unknown:
        raise ValueError(f"--tables {min(unknown)}: there are {', '.join(map(str, needed))}")
    wanted = dict.fromkeys(run for t in chosen or needed for run in needed[t])
    for seed in seeds:
        for network, plan in wanted:
            yield Run(network, plan, seed, EPOCHS, TRAINING)
    for plan in (FIXED, PROGRESSIVE):
        if (V2, plan) in wanted:
            yield Run(V2, plan, seeds[0], EPOCHS, TRAINING, course=True)
