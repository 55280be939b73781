"""One training of an ablation, by the recipe library itself, on one thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from python_ref import count_macs
from python_ref.recipe.draws import seed_of
from python_ref.recipe.groups import Group
from python_ref.recipe.loader import evaluation_loader
from python_ref.recipe.logs import Log
from python_ref.recipe.loop import Data, Trainer
from python_ref.recipe.options import Recipe, resolved
from python_ref.recipe.records import Evaluation
from python_ref.recipe.schedule import Schedule
from python_ref.recipe.sources.source import Part
from python_ref.recipe.transforms import Making

from .digits import split
from .networks import NETWORKS
from .plans import BATCH, COURSE_EVERY, Run

_CPU = Group(0, 1, torch.device("cpu"))
#: The rate falls to a sixth; the paper's to a hundredth, of a 350 epochs' training.
_DECAYS = 60
#: Digits have an up and a left, and must not be cut in half.
_MAKING = Making(min_area=0.5, flip=0.0)


@dataclass(frozen=True)
class Moment:
    """A training after an epoch. macs: multiply-adds so far."""

    epoch: float
    size: int
    magnitude: float
    top1: float
    macs: float


@dataclass(frozen=True)
class Outcome:
    """top1: fraction of the held-out digits; loss: their mean cross entropy. macs: multiply-adds,
    three times those of a forward. seconds: of the process, images made and weights changed,
    without evaluation. course: where the run asks for it."""

    top1: float
    loss: float
    macs: float
    seconds: float
    course: tuple[Moment, ...]


def train(run: Run) -> Outcome:
    """The same run gives the same weights."""
    schedule = run.plan.schedule(run.epochs, run.seed)
    recipe = resolved(_recipe(run), run.training, world=1, cuda=False, cores=1)
    training, held_out = split(run.training, run.seed)
    size = run.plan.sizes[1]
    # Evaluations during the training would be in its time.
    watched = held_out if run.course else Part(held_out, np.arange(1))
    torch.manual_seed(seed_of(run.seed, "weights"))
    model = NETWORKS[run.network]()
    macs = _macs(model, schedule)
    log = Log(None, schedule, title="", begin=0, total_steps=1, quiet=True, tensorboard=False)
    data = Data(training, watched, _MAKING, "half", "official", size)
    trainer = Trainer(model, recipe, schedule, data, _CPU, log)
    begin = time.process_time()
    result = trainer.run()
    seconds = time.process_time() - begin
    score = trainer.learner.evaluate(evaluation_loader(held_out, size, batch=64))
    return Outcome(
        score.top1,
        score.loss,
        sum(count * macs[size] for size, count in result.images.items()),
        seconds,
        _course(schedule, result.evaluations, macs, run) if run.course else (),
    )


def _recipe(run: Run) -> Recipe:
    """AdamW, which got further in these few hundred steps than RMSprop as in TensorFlow."""
    return Recipe(
        epochs=run.epochs,
        optimizer="adamw",
        batch=BATCH,
        lr=0.048,
        warmup_epochs=1.0,
        decay="exponential",
        decay_epochs=run.epochs / _DECAYS,
        weight_decay=0.05,
        ema=0.99,
        workers=0,
        amp="no",
        seed=run.seed,
        evaluate_every=COURSE_EVERY if run.course else run.epochs,
    )


def _macs(model: nn.Module, schedule: Schedule) -> dict[int, int]:
    """Multiply-adds of a training step an image, by its size: a forward, and twice as much for the
    gradients of activations and of weights."""
    sizes = {stage.size for stage in schedule.stages}
    return {size: 3 * count_macs(model, size) for size in sizes}


def _course(
    schedule: Schedule, evaluations: Sequence[Evaluation], macs: dict[int, int], run: Run
) -> tuple[Moment, ...]:
    found, spent = [], 0.0
    for number, evaluation in enumerate(evaluations):
        stage = schedule.at(number * COURSE_EVERY)
        spent += macs[stage.size] * run.training * COURSE_EVERY
        epoch, magnitude = (number + 1) * COURSE_EVERY, stage.regularisation.magnitude
        found.append(Moment(epoch, stage.size, magnitude, evaluation.top1, spent))
    return tuple(found)
