"""What runs in every process of a group, and how a test runs one: nothing in it waits for ever."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2


def run_group(worker: Callable[..., Any], folder: Path, *arguments: Any, limit: float) -> list[Any]:
    """What ``worker(rank, *arguments)`` returns in each of WORLD processes. Raises what a process
    raises, and TimeoutError after ``limit`` seconds; no process outlives the call."""
    folder.mkdir()
    context = mp.spawn(_in_group, (worker, folder, limit, arguments), WORLD, join=False)
    end = time.monotonic() + limit
    try:
        while not context.join(timeout=1.0):
            if time.monotonic() > end:
                raise TimeoutError(f"{worker.__name__} took more than {limit} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()
    return [torch.load(_result(folder, rank), weights_only=False) for rank in range(WORLD)]


def _in_group(rank: int, worker: Callable[..., Any], folder: Path, limit: float, arguments) -> None:
    torch.set_num_threads(1)
    with group(folder, rank, WORLD, limit):
        torch.save(worker(rank, *arguments), _result(folder, rank))


@contextmanager
def group(folder: Path, rank: int, size: int, limit: float) -> Iterator[None]:
    """Processes find one another by a file, which no other test can have taken, as it may a
    port."""
    dist.init_process_group(
        "gloo",
        init_method=(folder / "group").as_uri(),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=limit),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _result(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.pt"
