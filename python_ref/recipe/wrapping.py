"""A network shared among processes, and its tensors as one process would have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from .errors import RecipeError
from .groups import Group


def shard(model: nn.Module, group: Group) -> None:
    """FSDP2, in place: every process keeps its part of each weight. Each block of a stage is a
    unit, whose weights are whole only while it runs. Raises RecipeError for a single process."""
    if group.world == 1:
        raise RecipeError("--fsdp shares a network among processes: start them with torchrun")
    for block in _blocks(model):
        fully_shard(block)
    fully_shard(model)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules of stages, which are plain Sequentials."""
    for child in module.children():
        if type(module) is nn.Sequential and type(child) is not nn.Sequential:
            if any(True for _ in child.parameters()):
                yield child
        else:
            yield from _blocks(child)


def replicate(model: nn.Module, group: Group) -> nn.Module:
    """DDP around the model, or the model itself where there is one process."""
    if group.world == 1:
        return model
    devices = [group.device.index] if group.device.type == "cuda" else None
    # A batch norm's statistics are the first process's, as are the weights that are kept.
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def whole(tree: Any) -> Any:
    """A tree of dictionaries, lists and tensors with every sharded tensor put together. All
    processes have to call it."""
    if isinstance(tree, DTensor):
        return tree.full_tensor()
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(whole(value) for value in tree)
    return tree


def sharded_like(tensor: Tensor, live: Tensor) -> Tensor:
    """A whole tensor in the form that ``live`` has: sharded as it is, or as it was given."""
    if not isinstance(live, DTensor) or tensor.shape != live.shape:
        return tensor
    return distribute_tensor(tensor.to(live.device), live.device_mesh, live.placements)


def load_network(model: nn.Module, state: dict[str, Tensor]) -> None:
    live = model.state_dict()
    model.load_state_dict({name: sharded_like(t, live[name]) for name, t in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """As ``optimizer.load_state_dict``, of a state with whole tensors; the optimizer's options stay
    as they are."""
    options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = sharded_like(value, parameters[number])
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
