"""The training loop: steps along a stream of images, stage after stage, from any step on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import checkpoints
from .clocks import Clock
from .draws import Step, Stream, seed_of
from .errors import RecipeError
from .groups import Group
from .learner import Learner
from .loader import Batch, Broken, Loader, Statistics, evaluation_loader, training_loader
from .logs import Log
from .optimisation import rate_factor
from .options import Recipe, accumulation
from .records import Evaluation, Point
from .schedule import Schedule, Stage
from .sources import Source
from .transforms import Making, Rule

if TYPE_CHECKING:
    from .dali import DaliLoader

_EVERY = 10  # steps between two looks at the loss, which wait for a GPU


@dataclass(frozen=True)
class Data:
    """train, validation: labelled images. making: of training images. statistics: how their pixels
    come near zero. rule, test_size: of evaluation."""

    train: Source
    validation: Source
    making: Making
    statistics: Statistics
    rule: Rule
    test_size: int


@dataclass
class Result:
    """Of one process's part of a training.

    finished: False where it was stopped before the end. steps: of the whole training so far.
    seconds: in training steps alone. images: how many were trained on, by their size.
    """

    finished: bool = False
    steps: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0
    images: dict[int, int] = field(default_factory=dict)


def stream_of(recipe: Recipe, schedule: Schedule, images: int, world: int) -> Stream:
    """The steps of a training on so many images."""
    assert recipe.batch is not None
    parts = accumulation(recipe, world)
    return Stream(schedule, images, recipe.batch, recipe.seed, world=world, accumulate=parts)


class Trainer:
    """One training of ``model``, which changes in place.

    Args:
        recipe: ``resolved``.
        prepare: as ``Learner`` takes it.
        output: folder for checkpoints; None writes none.
        stop: asked after every step whether the process was told to end.
    Raises RecipeError for what cannot go together.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        schedule: Schedule,
        data: Data,
        group: Group,
        log: Log,
        *,
        prepare: Callable[[nn.Module], object] | None = None,
        output: Path | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.recipe, self.schedule, self.data = recipe, schedule, data
        self.group, self.log, self.output, self.stop = group, log, output, stop
        self.stream = stream_of(recipe, schedule, len(data.train), group.world)
        self.learner = Learner(model, recipe, group, data.statistics, prepare)
        self.number, self.position = 0, 0  # steps that are done, and the images that they took
        self._clock = Clock(group.device.type == "cuda")
        self._broken = Broken(recipe.broken)
        self._workers = recipe.workers or 0
        self._evaluated_at_once = recipe.device_batch or 32
        self._tried, self._unread = 0, list[str]()  # images since the last look
        self._loss = torch.zeros((), device=group.device)  # of the steps since the last look
        self._looked = 0

    def run(self) -> Result:
        """Trains from the step it is at to the last one, or to where it is told to stop. Raises
        RecipeError for a loss that is no number and for more broken images than are allowed."""
        result, stage = Result(self.position >= self.stream.end), -1
        deadline = _Deadline(self.recipe)
        self._looked = self.number
        with self.training_loader() as loader, self._validation_loader() as validation:
            batches = iter(loader)
            for step in self.stream.steps(self.number, self.position):
                if step.stage != stage:
                    stage = step.stage
                    self.learner.set_dropout(self._stage(step).regularisation.dropout)
                self._loss += self._step(step, batches)
                self.number, self.position = step.number + 1, step.end
                size = self._stage(step).size
                result.images[size] = result.images.get(size, 0) + step.images

                last = step.end >= self.stream.end
                # Every process has to do the same next.
                stop, save = self.group.any(self.stop() or deadline.over, deadline.save)
                scored = last or (self._evaluates(step) and not stop)
                # Nothing is lost where it is killed while it evaluates.
                save = save or stop or scored or self._saves()
                if save or self.number % _EVERY == 0:
                    result.seconds += self._look(step)
                if save:
                    self.save()
                    deadline.saved()
                if scored:
                    result.evaluations.append(self._evaluate(validation))
                if save:
                    self._clock.restart()
                if stop or last:
                    result.finished = last
                    break
            if result.finished and not result.evaluations:  # it was killed in its last one
                result.evaluations.append(self._evaluate(validation))
        result.steps = self.number
        if self._broken.count:
            self.log.say(str(self._broken))
        return result

    def training_loader(self) -> Loader | DaliLoader:
        """This process's batches from the step that the training is at."""
        return training_loader(
            self.data.train,
            self.schedule,
            self.data.making,
            self.stream.draws(self.group.rank, self.number, self.position),
            smoothing=self.recipe.label_smoothing,
            workers=self._workers,
            pin=self.group.device.type == "cuda",
        )

    def _validation_loader(self) -> Loader:
        return evaluation_loader(
            self.data.validation,
            self.data.test_size,
            self.data.rule,
            batch=self._evaluated_at_once,
            workers=self._workers,
            rank=self.group.rank,
            world=self.group.world,
            pin=self.group.device.type == "cuda",
        )

    def _step(self, step: Step, batches: Iterator[Batch]) -> Tensor:
        """One update of the weights; the mean loss of this process's images, on its device."""
        # In proportion to the batch, which may have grown.
        assert self.recipe.batch is not None
        grown = step.images / self.recipe.batch
        self.learner.set_rate(grown * rate_factor(self.recipe, self.stream.epoch(step.position)))
        loss = torch.zeros((), device=self.group.device)
        parts = self.stream.accumulate
        for part in range(parts):
            batch = self._next(batches)
            with self._clock.step():
                # Drop paths and dropout, too, are drawn from the position alone.
                torch.manual_seed(
                    seed_of(self.recipe.seed, "step", step.number, part, self.group.rank)
                )
                loss += self.learner.accumulate(batch, parts, last=part == parts - 1)
        with self._clock.step():
            self.learner.update(step.number)
        return loss

    def _next(self, batches: Iterator[Batch]) -> Batch:
        batch = next(batches)
        self._tried += len(batch)
        self._unread.extend(batch.broken)
        self._clock.made(len(batch), batch.seconds)
        return batch

    def _look(self, step: Step) -> float:
        """Writes down how it goes; the seconds that this process's steps took since the last look.
        Raises RecipeError for a loss that is no number, in all processes."""
        steps, self._looked = self.number - self._looked, self.number
        loss = float(self.group.sum(self._loss)) / (steps * self.group.world)
        self._loss.zero_()
        if not math.isfinite(loss):
            raise RecipeError(self._diverged())
        self._account_for_broken()
        images = self._clock.images
        speeds = self._clock.read(self._workers)
        stage = self._stage(step)
        self.log.point(
            Point(
                self.number,
                self.stream.epoch(self.position),
                step.stage,
                stage.size,
                loss,
                self.learner.rate,
                speeds[0] * self.group.world,
                speeds[1] * self.group.world,
                speeds[2] * self.group.world,
                stage.regularisation.magnitude,
                stage.regularisation.mixup,
                stage.regularisation.dropout,
            )
        )
        return images / speeds[2]

    def _account_for_broken(self) -> None:
        """Names the images that could not be read since the last look, in whichever process. Where
        they are too many, all processes keep a checkpoint and raise RecipeError."""
        tried = int(self.group.sum(torch.tensor([self._tried + len(self._unread)])))
        names = self.group.gather(self._unread)
        self._tried, self._unread = 0, []
        for named in self._broken.add(tried, names):
            self.log.say(f"left out: {named}")
        try:
            self._broken.check()
        except RecipeError:
            self.save()
            raise

    def _evaluate(self, batches: Loader) -> Evaluation:
        share = math.ceil(len(self.data.validation) / self.group.world)
        rounds = math.ceil(share / self._evaluated_at_once)
        score = self.learner.evaluate(batches, self.data.test_size, rounds)
        broken = Broken(self.recipe.broken)
        for named in broken.add(score.images, self.group.gather(score.broken)):
            self.log.say(f"left out of the evaluation: {named}")
        broken.tried += broken.count
        broken.check()
        values = {name: value for name, value in asdict(score).items() if name != "broken"}
        epoch = self.stream.epoch(self.position)
        found = Evaluation(self.number, epoch, self.data.test_size, **values)
        self.log.evaluation(found)
        return found

    def _stage(self, step: Step) -> Stage:
        return self.schedule.stages[step.stage]

    def _evaluates(self, step: Step) -> bool:
        """Whether an evaluation is due between the beginning of a step and its end."""
        every = self.recipe.evaluate_every * self.stream.images
        return math.floor(step.end / every + 1e-9) > math.floor(step.position / every + 1e-9)

    def _saves(self) -> bool:
        every = self.recipe.save_steps
        return every is not None and self.number % every == 0

    def _diverged(self) -> str:
        newest = checkpoints.newest(self.output) if self.output is not None else None
        kept = f"; {newest} is from before it" if newest else ""
        return (
            f"the loss is no number at step {self.number}{kept}: try a lower --lr, more"
            " --warmup-epochs, --clip 1, or --amp bf16 in place of fp16"
        )

    def save(self) -> None:
        """All that going on from here takes. Every process calls it, the first one writes."""
        if self.output is None:
            return
        state = self.learner.state()
        if not self.group.first:
            return
        numbers = [t for t in state["network"].values() if t.is_floating_point()]
        if not torch.stack([t.isfinite().all() for t in numbers]).all():
            raise RecipeError(self._diverged())
        about = {"step": self.number, "position": self.position, "about": self._about()}
        checkpoints.save(self.output, self.number, {**state, **about})

    def resume(self, state: dict[str, Any], path: Path) -> None:
        """Goes on from what ``save`` wrote. Raises RecipeError where it is of another run."""
        for name, own in self._about().items():
            found = state["about"].get(name)
            if found != own:
                raise RecipeError(f"{path} is of a run with {name} {found}, this one has {own}")
        try:
            self.learner.load(state)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error
        self.number, self.position = state["step"], state["position"]

    def _about(self) -> dict[str, Any]:
        """What has to be the same where a run goes on."""
        return {
            "--model": self.recipe.model,
            "classes": len(self.data.train.classes),
            "training images": len(self.data.train),
            "--seed": self.recipe.seed,
            "--optimizer": self.recipe.optimizer,
        }


class _Deadline:
    """When to save, and when to end, by the clock."""

    def __init__(self, recipe: Recipe) -> None:
        now = time.monotonic()
        self._every, self._saved = 60 * recipe.save_minutes, now
        self._end = math.inf if recipe.wall_minutes is None else now + 60 * recipe.wall_minutes

    @property
    def over(self) -> bool:
        return time.monotonic() > self._end

    @property
    def save(self) -> bool:
        return time.monotonic() - self._saved > self._every

    def saved(self) -> None:
        self._saved = time.monotonic()
