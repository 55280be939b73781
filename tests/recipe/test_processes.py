"""Several processes: they take what one would take, and train what one would train."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import effv2_kernels as ek
from python_ref.recipe import Regularisation, checkpoints, fixed
from python_ref.recipe.groups import Group
from tests.recipe import small
from tests.recipe.test_loop import assert_moved_alike
from tests.training.few_blocks import FEW, python_ref_network
from tests.training.ranks import WORLD, run_group

LIMIT = 240.0


def without_statistics() -> nn.Module:
    """Batch norms that no batch moves: then it makes no difference who takes which image."""
    model = python_ref_network(FEW, drop_path=0.0)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.train = partial(_unmoved, norm)
        norm.training = False
    return model


def _unmoved(norm: nn.Module, mode: bool = True) -> nn.Module:
    return norm


def trained(group: Group, output: Path | None = None, stop: int = 99, **values) -> dict:
    """Weights before and after, on the first process's view; and the evaluation."""
    images = values.pop("validation_images", 20)
    recipe = small.recipe(epochs=2.0, optimizer="sgd", lr=0.5, **values)
    of = fixed("one", 32, Regularisation(4.0), 2.0)
    made = small.trainer(
        recipe,
        of=of,
        group=group,
        validation_images=images,
        network=without_statistics,
        prepare=ek.patch,
        output=output,
    )
    before = made.learner.weights()
    newest = checkpoints.newest(output) if output is not None else None
    if newest is not None:
        made.resume(checkpoints.load(newest), newest)
    made.stop = lambda: made.number >= stop
    result = made.run()
    state = made.learner.state()
    scores = [(e.top1, e.loss, e.images) for e in result.evaluations]
    return {"before": before, "after": dict(state["network"]), "scores": scores}


def in_group(rank: int, values: dict, output: Path | None) -> dict:
    control = dist.group.WORLD
    group = Group(rank, WORLD, torch.device("cpu"), control)
    if output is not None:
        trained(group, output, stop=4, **values)
        group.wait()
    return trained(group, output, **values)


def assert_alike(found: dict, alone: dict) -> None:
    assert_moved_alike(found["after"], alone["after"], alone["before"], 1e-3)
    (top1, loss, images), (top1_alone, loss_alone, images_alone) = (
        found["scores"][-1],
        alone["scores"][-1],
    )
    assert images == images_alone and top1 == top1_alone
    assert loss == pytest.approx(loss_alone, rel=1e-3)


@pytest.mark.parametrize("how", ["ddp", "accumulated", "resumed"])
def test_two_train_what_one_trains(tmp_path: Path, how: str) -> None:
    """Without mixing, which is of the images of one process."""
    values = {"device_batch": 2} if how == "accumulated" else {}
    output = tmp_path / "output" if how == "resumed" else None
    first, second = run_group(in_group, tmp_path / "group", values, output, limit=LIMIT)
    assert _equal(first["after"], second["after"])
    assert_alike(first, trained(small.ALONE, **values))


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[n], other[n]) for n in one)


def test_sharded(tmp_path: Path) -> None:
    """FSDP2, stopped and gone on: as one process. One process has a batch to evaluate more."""
    values = {"fsdp": True, "validation_images": 17}
    found = run_group(in_group, tmp_path / "group", values, tmp_path / "output", limit=LIMIT)
    assert_alike(found[0], trained(small.ALONE, validation_images=17))


#: The README's command for digits: timm's smallest EfficientNetV2.
DIGITS = (
    *("train", "digits", "--model", "timm:test_efficientnet", "--epochs", "15", "--batch", "32"),
    *("--min-size", "32", "--max-size", "64", "--magnitude", "3", "--min-area", "0.7"),
    *("--flip", "0", "--optimizer", "adamw", "--lr", "0.12", "--decay", "cosine"),
    *("--weight-decay", "0.05", "--warmup-epochs", "1", "--drop-path", "0.05"),
    *("--evaluate-every", "5", "--device", "cpu", "--workers", "0"),
)


def top1(printed: str) -> float:
    return float(re.findall(r"top-1 ([\d.]+)%, top-5", printed)[-1])


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.mark.slow
def test_digits_in_one_command(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    command = [sys.executable, "-m", "effv2_kernels", *DIGITS, "--output", str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert top1(done.stdout) > 97.0, done.stdout[-2000:]


@pytest.mark.slow
def test_digits_in_two_processes_one_of_which_is_killed(tmp_path: Path) -> None:
    """torchrun starts both again, and they resume by themselves."""
    pytest.importorskip("timm", reason="timm is an extra")
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    options = ("--max-restarts", "1", "-m", "effv2_kernels", *DIGITS, "--save-steps", "50")
    command = [sys.executable, "-m", *launcher, *options, "--output", str(tmp_path)]
    with (tmp_path / "printed").open("w") as printed:
        running = subprocess.Popen(
            command, env=environment(), stdout=printed, stderr=printed, start_new_session=True
        )
        try:
            end = time.monotonic() + 300
            while checkpoints.newest(tmp_path) is None and time.monotonic() < end:
                time.sleep(0.2)
            os.kill(_children_of(running.pid)[-1], signal.SIGKILL)
            status = running.wait(timeout=300)
        finally:
            for process in _tree_of(running.pid):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            running.wait()
    said = (tmp_path / "printed").read_text()
    assert status == 0, said[-3000:]
    assert "going on from" in said
    assert top1(said) > 97.0, said[-2000:]


def _children_of(process: int) -> list[int]:
    """In the order in which they were started."""
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in found.split()]


def _tree_of(process: int) -> list[int]:
    """It and all below it: torchrun's workers outlive it."""
    return [process, *(p for child in _children_of(process) for p in _tree_of(child))]
