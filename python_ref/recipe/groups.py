"""The processes that train one network together, as ``torchrun`` starts them; or only this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from .errors import RecipeError


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

    def gather(self, items: Sequence[str]) -> list[str]:
        """Those of all processes, in all of them."""
        if self.world == 1:
            return list(items)
        found: list[list[str]] = [[]] * self.world
        dist.all_gather_object(found, list(items), group=self.control)
        return [item for part in found for item in part]

    def as_first(self, choose: Callable[[], str | None]) -> str | None:
        """What the first process chooses, in all of them."""
        chosen = [choose() if self.first else None]
        if self.world > 1:
            dist.broadcast_object_list(chosen, 0, group=self.control)
        return chosen[0]

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier(group=self.control)


@contextmanager
def joined(device: str | None = None) -> Iterator[Group]:
    """The group that the environment (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ...) describes.

    device: ``"cuda"``, ``"cuda:1"``, ``"cpu"``, or None for a GPU if there is one. Of several
    processes each takes the GPU of its local rank. Raises RecipeError for a device that is not
    there.
    """
    where = _device(device)
    cuda = where.type == "cuda"
    if cuda:
        torch.cuda.set_device(where)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Group(0, 1, where)
        return
    store, rank, world = next(iter(rendezvous("env://")))
    # torchrun's restarted processes get the store of those before them, whose addresses are still
    # in it.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore(f"attempt{attempt}", store),
        rank=rank,
        world_size=world,
    )
    control = dist.new_group(backend="gloo") if cuda else dist.group.WORLD
    yield Group(dist.get_rank(), dist.get_world_size(), where, control)
    # Not after an error: the others may be waiting within an exchange, until this process ends.
    dist.destroy_process_group()


def _device(name: str | None) -> torch.device:
    try:
        wanted = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise RecipeError(f"--device {name} is no device: cuda or cpu") from error
    if wanted.type != "cuda":
        return wanted
    index = int(os.environ.get("LOCAL_RANK", wanted.index or 0))
    if index >= torch.cuda.device_count():
        raise RecipeError(
            f"--device {name or 'cuda'}: there is no GPU {index}, of {torch.cuda.device_count()}"
        )
    return torch.device("cuda", index)
