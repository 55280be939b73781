"""What a run tells people while it goes on: terminal, text, CSV files, TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from . import display
from .records import Evaluation, Point, Table, writing
from .schedule import Schedule

POINTS, EVALUATIONS, TEXT = "steps.csv", "evaluations.csv", "log.txt"
_POSITION = ("step", "epoch", "stage")  # the fields of a record that are no curves


def bottleneck(loader: float, step_only: float) -> str:
    """Which of the two waits for the other, in words; both in images a second, and ``""`` where one
    of them is not known (not above 0)."""
    if not (0 < loader < math.inf and 0 < step_only < math.inf):
        return ""
    told = f"loader {loader:,.0f} images/s, step {step_only:,.0f} images/s"
    if loader >= step_only:
        return f"{told}: the step is what takes the time"
    return f"{told}: the step waits for images; more --workers or --loader tv"


class Log:
    """The terminal, and in the folder ``output`` steps.csv, evaluations.csv, log.txt and a folder
    tensorboard. For one process of a run; the others make none, or a ``quiet`` one without output.

    Args:
        output: made if need be; None writes no files.
        title: of the run, a few words.
        begin: the step of the checkpoint that the run goes on from, 0 for a new one. What an
            earlier process wrote of later steps is dropped; of all steps, if it is 0.
        total_steps: of the whole training.
        quiet: nothing on the terminal.
        tensorboard: event files, if the package is there.

    A context manager. Every method raises RecipeError where a file cannot be written.
    """

    def __init__(
        self,
        output: Path | None,
        schedule: Schedule,
        *,
        title: str,
        begin: int,
        total_steps: int,
        quiet: bool = False,
        tensorboard: bool = True,
    ) -> None:
        self._output, self._schedule = output, schedule
        self._last: Point | None = None
        self._stage: list[Point] = []  # of the stage that is going on
        self._began: tuple[float, float] | None = None  # seconds, work: at the first point
        self._evaluation: Evaluation | None = None
        first = begin + 1 if begin else 0
        if output is not None:
            with writing(output):
                output.mkdir(parents=True, exist_ok=True)
            self._points = Table(output / POINTS, Point, first)
            self._evaluations = Table(output / EVALUATIONS, Evaluation, first)
            self._evaluation = self._evaluations.kept[-1] if self._evaluations.kept else None
        self._display = display.choose(title, total_steps, quiet)
        self._curves = self._tensorboard(first) if tensorboard else None

    def point(self, point: Point) -> None:
        if self._last is not None and point.stage != self._last.stage:
            self._end_stage()
        self._last = point
        self._stage.append(point)
        self._show(point)
        if self._output is not None:
            self._points.append(point)
        self._draw("training", point)

    def evaluation(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self.say(
            f"epoch {evaluation.epoch:.2f}: top-1 {evaluation.top1:.2%}, top-5"
            f" {evaluation.top5:.2%}, loss {evaluation.loss:.4f} ({evaluation.images:,} images of"
            f" {evaluation.size} pixels in {evaluation.seconds:.1f} s)"
        )
        if self._last is not None:
            self._show(self._last)
        if self._output is not None:
            self._evaluations.append(evaluation)
        self._draw("evaluation", evaluation)

    def say(self, text: str) -> None:
        """Lines that stay, in log.txt with the time."""
        self._display.say(text)
        if self._output is None:
            return
        now = datetime.now().isoformat(" ", "seconds")
        with writing(self._output / TEXT), (self._output / TEXT).open("a") as file:
            file.write("".join(f"{now}  {line}\n" for line in text.splitlines()))

    def close(self) -> None:
        """Says how the stage went that was going on. More calls do nothing."""
        try:
            self._end_stage()
        finally:
            self._release()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._release()

    def _release(self) -> None:
        self._display.close()
        if self._curves is not None and self._output is not None:
            curves, self._curves = self._curves, None
            with writing(self._output / "tensorboard"):
                curves.close()

    def _show(self, point: Point) -> None:
        self._display.show(
            display.Status(
                point.step,
                point.stage,
                self._details(point),
                f"{point.images_per_second:,.0f} images/s, {self._left(point)}",
                bottleneck(point.loader, point.step_only),
            )
        )

    def _details(self, point: Point) -> str:
        of = self._schedule
        found = self._evaluation
        return (
            f"stage {point.stage + 1}/{len(of.stages)} at {point.size} pixels,"
            f" epoch {point.epoch:.2f} of {of.epochs:g}, loss {point.loss:.3f}"
            + (f", top-1 {found.top1:.1%}" if found is not None else "")
        )

    def _end_stage(self) -> None:
        """Says who waited for whom in the stage."""
        points, self._stage = self._stage, []
        if not points:
            return
        told = bottleneck(
            _mean_speed(points, lambda point: point.loader),
            _mean_speed(points, lambda point: point.step_only),
        )
        last = points[-1]
        speed = _mean_speed(points, lambda point: point.images_per_second)
        self.say(
            f"stage {last.stage + 1} at {last.size} pixels, up to step {last.step}:"
            f" {speed:,.0f} images/s" + (f"; {told}" if told else "")
        )

    def _left(self, point: Point) -> str:
        """The time to the end of the training at this process's pace, given that an image costs
        what its pixels do: the stages to come are slower."""
        done = _work(self._schedule, point.epoch)
        now = time.monotonic()
        if self._began is None:
            self._began = now, done
        elapsed, worked = now - self._began[0], done - self._began[1]
        if worked <= 0:
            return "time left not known yet"
        left = _work(self._schedule, self._schedule.epochs) - done
        return f"{timedelta(seconds=round(elapsed * left / worked))} left"

    def _tensorboard(self, first: int) -> Any:
        """A writer of event files, or None."""
        if self._output is None:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception as error:  # not only where it is missing: of other protobufs, a TypeError
            reason = str(error).partition("\n")[0]
            self.say(f"TensorBoard logs need pip install tensorboard ({reason})")
            return None
        folder = self._output / "tensorboard"
        with writing(folder):
            return SummaryWriter(str(folder), purge_step=first)

    def _draw(self, group: str, record: Point | Evaluation) -> None:
        if self._curves is None or self._output is None:
            return
        with writing(self._output / "tensorboard"):
            for name, value in asdict(record).items():
                if name not in _POSITION:
                    self._curves.add_scalar(f"{group}/{name}", value, record.step)


def _mean_speed(points: list[Point], speed: Callable[[Point], float]) -> float:
    """Images a second over all points; it is the seconds an image that average. 0 where a point
    does not know."""
    speeds = [speed(point) for point in points]
    return 1 / fmean(1 / each for each in speeds) if all(each > 0 for each in speeds) else 0.0


def _work(schedule: Schedule, epoch: float) -> float:
    """Of the training up to ``epoch``, in pixels times epochs."""
    begins = (0.0, *schedule.ends)
    return sum(
        stage.size**2 * max(0.0, min(epoch, end) - begin)
        for stage, begin, end in zip(schedule.stages, begins[:-1], schedule.ends, strict=True)
    )
