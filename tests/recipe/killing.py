"""Trains the same network again and again, killing it at random moments: what test_killed.py runs.

It forks its trainings, which so need not import PyTorch anew, and is a program of its own, since
only a process without threads may fork them.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import matplotlib.pyplot  # noqa: F401  (for the forks, as the next)
import timm.optim  # noqa: F401
import torch
from torch import Tensor

import effv2_kernels as ek
from python_ref.recipe import checkpoints
from python_ref.recipe.options import Recipe
from python_ref.recipe.run import run

RECIPE = Recipe(
    model="timm:test_efficientnet",
    epochs=3.0,
    batch=8,
    device_batch=8,
    workers=0,
    warmup_epochs=1.0,
    stages=3,
    min_size=32,
    max_size=48,
    test_size=32,
    evaluate_every=2.0,
    save_steps=1,
    deterministic=True,
)


def train(images: Path, output: Path, rank: int, world: int, port: int) -> None:
    """In a process that ends with it."""
    status = 1
    try:
        if world > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        recipe = Recipe(**{**vars(RECIPE), "output": str(output)})
        run(recipe, str(images), device="cpu", prepare=lambda model: str(ek.patch(model)))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def start(images: Path, output: Path, world: int) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        process = os.fork()
        if process == 0:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            train(images, output, rank, world, port)
        processes.append(process)
    return processes


def join(processes: list[int]) -> bool:
    """Whether all ended well."""
    return all([os.waitpid(process, 0)[1] == 0 for process in processes])


def kill(processes: list[int], draw: random.Random) -> None:
    """One of them; the others, which may not even notice, after it."""
    order = draw.sample(processes, len(processes))
    for process in order:
        os.kill(process, signal.SIGKILL)
        time.sleep(draw.choice([0.0, 0.02]))


def final(output: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    newest = checkpoints.newest(output)
    assert newest is not None
    state = checkpoints.load(newest)
    moments = state["optimizer"]["state"].items()
    found = {f"{n} {k}": t for n, s in moments for k, t in s.items() if isinstance(t, Tensor)}
    found |= {f"network {name}": t for name, t in state["network"].items()}
    return found | load_file(output / "weights.safetensors")


def main(folder: Path, images: Path, kills: int, world: int) -> None:
    draw = random.Random(os.environ.get("EFFV2_TEST_SEED", time.time_ns()))
    begin = time.monotonic()
    assert join(start(images, folder / "whole", world)), "the uninterrupted run failed"
    lasts = time.monotonic() - begin
    expected = final(folder / "whole")
    done, round_, resumed = 0, 0, 0
    while done < kills:
        output = folder / f"round{round_}"
        processes = start(images, output, world)
        time.sleep(draw.uniform(0.1, 0.9) * lasts)
        kill(processes, draw)
        join(processes)
        done += 1
        for path in checkpoints.listed(output):
            assert checkpoints.load(path)["step"] >= 0, path
            resumed += path == checkpoints.newest(output)
        if done % 4 == 0:  # now to the end, and once more from the beginning
            assert join(start(images, output, world)), "a resumed run failed"
            found = final(output)
            assert found.keys() == expected.keys()
            wrong = [name for name, t in expected.items() if not torch.equal(found[name], t)]
            assert not wrong, f"{len(wrong)} of {len(expected)} tensors differ: {wrong[:5]}"
            round_ += 1
    print(f"{done} kills, {resumed} with a checkpoint, {round_} runs ended the same")
    assert resumed >= kills // 2, "most kills came before there was anything to resume"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
