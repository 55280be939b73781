"""A whole run: from a folder of images and a recipe to trained weights in another folder."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoints, initial, models, summary
from .draws import seed_of
from .errors import RecipeError
from .extras import extra
from .groups import Group, joined
from .logs import Log
from .loop import Data, Result, Trainer, stream_of
from .options import Recipe, resolved
from .paper import choose_test_size, make_schedule
from .schedule import Schedule
from .sources import Source, open_splits
from .transforms import LEGACY, OFFICIAL

SCHEDULE, WEIGHTS = "schedule.json", "weights.safetensors"
#: Called with the model before it is trained; returns a sentence for the log.
Prepare = Callable[[nn.Module], str]


def run(
    recipe: Recipe, where: str, *, device: str | None = None, prepare: Prepare | None = None
) -> Result:
    """Trains as ``recipe`` says on the images of ``where`` (``sources.open_splits``), alone or with
    the processes that torchrun started. The first process writes into ``recipe.output``:
    checkpoints, schedule.json, the logs, summary.png, and at the end weights.safetensors (the
    averaged weights). A SIGTERM or Ctrl-C ends it after the step it is at, with a checkpoint.

    prepare: for other kernels under the network. Raises RecipeError.
    """
    output = Path(recipe.output)
    with joined(device) as group, _deterministic(recipe.deterministic):
        if group.first:
            _claim(output)
        training, validation = _open(recipe, where, group)
        recipe = resolved(
            recipe,
            len(training),
            world=group.world,
            cuda=group.device.type == "cuda",
            cores=len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        )
        sizes = models.training_size(recipe.model), models.evaluation_size(recipe.model)
        schedule = make_schedule(recipe, models.schedule_network(recipe.model), *sizes)
        test_size = choose_test_size(recipe, schedule, *sizes)
        if recipe.schedule is not None:
            recipe = replace(recipe, epochs=schedule.epochs)
        found = group.as_first(lambda: _checkpoint(recipe, output))
        state = checkpoints.load(Path(found)) if found is not None else None
        stream = stream_of(recipe, schedule, len(training), group.world)
        done = (state["step"], state["position"]) if state else (0, 0)
        with _log(recipe, schedule, group, done[0], stream.total_steps(*done)) as log:
            model = _network(recipe, len(training.classes), log)
            data = _data(recipe, training, validation, test_size)
            with _told_to_stop() as stop:
                trainer = Trainer(
                    model,
                    recipe,
                    schedule,
                    data,
                    group,
                    log,
                    prepare=_saying(prepare, log),
                    output=output,
                    stop=stop,
                )
                log.say(_announcement(recipe, schedule, trainer, where))
                if state is not None and found is not None:
                    trainer.resume(state, Path(found))
                    log.say(f"going on from {found}, step {trainer.number}")
                    for path in checkpoints.forget_after(output, done[0]) if group.first else ():
                        log.say(f"deleted {path}, of the run that is not gone on with")
                del state
                result = trainer.run()
            weights = trainer.learner.weights()
            if group.first:
                _finish(trainer, weights, output, log)
            group.wait()
        return result


def _claim(output: Path) -> None:
    """Finds out before the work begins whether there is a place to put it."""
    checkpoints.write(output / ".writable", lambda file: file.write(b"yes"))
    (output / ".writable").unlink(missing_ok=True)
    for left in output.glob("*.unfinished"):
        left.unlink(missing_ok=True)


def _open(recipe: Recipe, where: str, group: Group) -> tuple[Source, Source]:
    """The first process opens first: some data sets write files as they are opened."""
    if not group.first:
        group.wait()
    try:
        return open_splits(where, validation=recipe.validation, holdout=recipe.holdout)
    finally:
        if group.first:
            group.wait()


def _checkpoint(recipe: Recipe, output: Path) -> str | None:
    """Which checkpoint to go on from; after torchrun's restart, its own newest."""
    newest = checkpoints.newest(output)
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if newest is not None and (recipe.resume == "auto" or restarted):
        return str(newest)
    if recipe.resume not in ("auto", "no"):
        return recipe.resume
    if newest is not None and recipe.resume == "no":
        raise RecipeError(
            f"--resume no, but {newest} is there: take another --output, or delete the folder"
        )
    return None


def _log(recipe: Recipe, schedule: Schedule, group: Group, begin: int, steps: int) -> Log:
    title = f"{recipe.model}, {recipe.epochs:g} epochs"
    if not group.first:
        return Log(None, schedule, title=title, begin=begin, total_steps=steps, quiet=True)
    output = Path(recipe.output)
    checkpoints.write(output / SCHEDULE, lambda file: file.write(schedule.to_json().encode()))
    return Log(output, schedule, title=title, begin=begin, total_steps=steps)


def _network(recipe: Recipe, classes: int, log: Log) -> nn.Module:
    torch.manual_seed(seed_of(recipe.seed, "weights"))
    model = models.create(recipe.model, classes, drop_path=recipe.drop_path, dropout=None)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = recipe.bn_momentum or norm.momentum
    if recipe.init is not None:
        said = initial.load_initial(model, recipe.init, classes, reset_classifier=recipe.finetune)
        log.say(said)
    return model


def _data(recipe: Recipe, training: Source, validation: Source, size: int) -> Data:
    rule = models.evaluation_rule(recipe.model)
    usual = OFFICIAL if rule == "official" else LEGACY
    making = replace(
        usual,
        min_area=recipe.min_area if recipe.min_area is not None else usual.min_area,
        crop=recipe.crop,
        flip=recipe.flip,
        erase=recipe.erase,
        cutout=recipe.cutout,
        decoder=recipe.loader,
    )
    return Data(training, validation, making, models.normalisation(recipe.model), rule, size)


def _saying(prepare: Prepare | None, log: Log) -> Callable[[nn.Module], None] | None:
    if prepare is None:
        return None

    def prepared(model: nn.Module) -> None:
        log.say(prepare(model))

    return prepared


def _announcement(recipe: Recipe, schedule: Schedule, trainer: Trainer, where: str) -> str:
    """All that was chosen, before it begins."""
    data, group = trainer.data, trainer.group
    processes = "1 process" if group.world == 1 else f"{group.world} processes"
    return "\n".join(
        (
            f"{where}: {len(data.train):,} images of {len(data.train.classes)} classes to train"
            f" on, {len(data.validation):,} to evaluate on, at {data.test_size} pixels",
            str(schedule),
            f"{trainer.stream.total_steps():,} steps; a step takes {recipe.batch} images, in"
            f" {processes} on {group.device.type}, each in {trainer.stream.accumulate} part(s)",
            str(recipe),
        )
    )


def _finish(trainer: Trainer, weights: dict[str, Tensor], output: Path, log: Log) -> None:
    """Weights and picture."""
    with extra():
        from safetensors.torch import save
    about = {"model": trainer.recipe.model, "classes": str(len(trainer.data.train.classes))}
    tensors = {name: t.contiguous() for name, t in weights.items()}
    checkpoints.write(output / WEIGHTS, lambda file: file.write(save(tensors, metadata=about)))
    log.say(f"averaged weights: {output / WEIGHTS}")
    log.say(f"course of the run: {summary.draw(output)}")


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not wanted
    if wanted:
        # Has to be there before cuBLAS is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _told_to_stop() -> Iterator[Callable[[], bool]]:
    """A function that says whether a SIGTERM or a first Ctrl-C came."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told.is_set
        return

    def tell(number: int, frame: object) -> None:
        told.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
