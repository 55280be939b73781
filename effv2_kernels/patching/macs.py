"""Multiply-accumulates of every layer that convolves or multiplies matrices, computing nothing."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_DEFAULT_RESOLUTION = 224
_LAYER_OPS = frozenset({"convolution", "_convolution", "addmm", "mm"})


def count(
    model: nn.Module, in_channels: int, watched: Iterable[str] = ()
) -> tuple[dict[str, int], int, dict[str, torch.Size]]:
    """MACs by dotted module name (a module's include its children's), the model's total, and the
    shapes of the inputs of the modules of the names ``watched``.

    For one image of the model's own input size. Counted are convolutions and linear layers, as
    functions too. What runs is a hollow copy on the meta device, without the model's hooks: no
    arithmetic, and nothing of the model is touched.
    """
    hollow = hollow_copy(model).eval()
    dtype = next((p.dtype for p in hollow.parameters()), torch.float32)
    image = torch.empty((1, in_channels, *input_size(model)), device="meta", dtype=dtype)
    shapes: dict[str, torch.Size] = {}
    for name in watched:
        hollow.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: shapes.setdefault(name, inputs[0].shape) and None
        )
    with _random_state_kept(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        hollow(image)
    flops = counter.get_flop_counts()
    root = f"{type(model).__name__}."
    by_name = {name.removeprefix(root): _layer_macs(ops) for name, ops in flops.items()}
    return by_name, _layer_macs(flops["Global"]), shapes


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """A model may draw random numbers in its forward; the caller's next ones stay the same."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    state = random.getstate()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(state)


def hollow_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose tensors are on the meta device, and which no hook listens to."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                empty = torch.empty_like(tensor, device="meta", requires_grad=False)
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(empty, False) if is_parameter else empty
        for name, hooks in vars(module).items():
            if name.endswith("_hooks") and isinstance(hooks, dict):
                memo[id(hooks)] = OrderedDict()
    return copy.deepcopy(model, memo)


def _layer_macs(flops: dict) -> int:
    return sum(n for op, n in flops.items() if op.__name__.split(".")[0] in _LAYER_OPS) // 2


def input_size(model: nn.Module) -> tuple[int, int]:
    """Height and width of the images that the model was made for, as far as it says so."""
    config = getattr(model, "default_cfg", None) or {}
    size = config.get("input_size") if isinstance(config, dict) else None
    return (size[-2], size[-1]) if size else (_DEFAULT_RESOLUTION, _DEFAULT_RESOLUTION)
