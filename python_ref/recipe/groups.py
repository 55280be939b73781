"""The processes that train one network together, as ``torchrun`` starts them; or only this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """This process, number ``rank`` of ``world``, and its device. ``control`` passes the few
    numbers by which the processes agree, on the CPU: it waits for no GPU."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Of all processes; float64, on the CPU."""
        tensor = tensor.detach().double().cpu()
        if self.world > 1:
            dist.all_reduce(tensor, group=self.control)
        return tensor

    def any(self, *flags: bool) -> list[bool]:
        """Which of the flags any process has set: the same answer in all of them."""
        if self.world == 1:
            return list(flags)
        return [bool(f) for f in self.sum(torch.tensor([float(f) for f in flags]))]

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier(group=self.control)


@contextmanager
def joined(device: str | None = None) -> Iterator[Group]:
    """The group that the environment (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ...) describes.

    device: ``"cuda"``, ``"cpu"``, or None for a GPU if there is one. Each process takes the GPU of
    its local rank.
    """
    cuda = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device("cuda", local) if cuda else torch.device(device or "cpu")
    if cuda:
        torch.cuda.set_device(where)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Group(0, 1, where)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    control = dist.new_group(backend="gloo") if cuda else dist.group.WORLD
    yield Group(dist.get_rank(), dist.get_world_size(), where, control)
    # Not after an error: the others may be waiting within an exchange, until this process ends.
    dist.destroy_process_group()
