"""Launches a Triton kernel, by a path that is shorter than Triton's own, or notes down that it
would have been launched.

Triton's launcher looks at every argument of every call, about 10 us of host time; a network at
batch 1 is a hundred launches. Our kernels specialise on little: the dtypes of the tensors, whether
their addresses are multiples of 16, and the constants. So the compiled kernel is kept under just
that, and called. (Run-time numbers are declared ``do_not_specialize``, and fit 32 bits.) What is
not there yet is compiled by ``_compile``, as ``warmup`` does it ahead: one key on disk, whoever
compiles.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...launch import targets
from ...launch.targets import Target
from . import interpreted

_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
}
_DTYPES = {name: dtype for dtype, name in _TYPES.items()}
# Where there is no GPU to ask: one multiprocessor, so that programs are few and large.
INTERPRETER = replace(targets.KNOWN["sm_80"], name="Triton's interpreter", multiprocessors=1)


@dataclass(frozen=True)
class Instance:
    """A kernel as it is compiled. types: one an argument, as Triton writes them, ":1" added where
    the address is no multiple of 16; None for a tensor that is not there. constants: (name, value),
    in the order of the kernel's parameters."""

    module: str
    kernel: str
    types: tuple[str | None, ...]
    constants: tuple[tuple[str, Any], ...]
    warps: int
    stages: int


class _Recording(threading.local):
    target: Target | None = None
    instances: dict[Instance, None] | None = None


_RECORDING = _Recording()
_COMPILED: dict[tuple, Any] = {}


@contextmanager
def recording(target: Target) -> Iterator[dict[Instance, None]]:
    """Within it, in this thread, nothing is launched: what would have been on ``target`` comes into
    the dictionary that is yielded. The tensors may be of the device "meta"."""
    before = _RECORDING.target, _RECORDING.instances
    _RECORDING.target, _RECORDING.instances = target, {}
    try:
        yield _RECORDING.instances
    finally:
        _RECORDING.target, _RECORDING.instances = before


def target_of(x: Tensor) -> Target:
    """What x's device offers to a launch."""
    if _RECORDING.target is not None:
        return _RECORDING.target
    return targets.of_device(x.device) if x.is_cuda else INTERPRETER


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    arguments: Sequence[Tensor | int | None],
    constants: Mapping[str, Any],
    *,
    warps: int,
    stages: int = 1,
) -> None:
    """Run ``kernel`` on the current stream of its tensors' device.

    arguments: the kernel's run-time parameters, tensors first, numbers below 2^31; constants: the
    others, by name, in the order of its parameters.
    """
    if _RECORDING.instances is not None:
        _RECORDING.instances[_instance(kernel, arguments, constants, warps, stages)] = None
        return
    if interpreted():
        kernel[grid](*arguments, **constants)
        return
    device = arguments[0].device  # type: ignore[union-attr]
    if device.index == torch.cuda.current_device():
        _launch(kernel, grid, arguments, constants, warps, stages, device.index)
        return
    with torch.cuda.device(device):
        _launch(kernel, grid, arguments, constants, warps, stages, device.index)


def _launch(
    kernel: Any,
    grid: tuple[int, int, int],
    arguments: Sequence[Tensor | int | None],
    constants: Mapping[str, Any],
    warps: int,
    stages: int,
    device: int,
) -> None:
    values = tuple(constants.values())
    # By identity: a kernel lives as long as its module, and hashing it takes a lock.
    key = (id(kernel), device, warps, stages, values, *map(_specialised, arguments))
    compiled = _COMPILED.get(key)
    if compiled is None:
        instance = _instance(kernel, arguments, constants, warps, stages)
        compiled = _COMPILED[key] = _compile(instance, device)
    compiled[grid](*arguments, *values)


def _compile(instance: Instance, device: int) -> Any:
    """The kernel, loaded on the current device, which is number ``device``."""
    from ._compile import compile_for

    compiled = compile_for(instance, targets.of_device(torch.device("cuda", device)))
    compiled[(1, 1, 1)]  # a launcher, for which the kernel is loaded
    return compiled


def options(warps: int, stages: int) -> dict[str, Any]:
    """What a kernel is compiled with, beside its constants; nothing is left to a default that a
    newer Triton changes."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def keep(instance: Instance, compiled: Any, device: int) -> None:
    """Load a compiled kernel on the current device, number ``device``, and let launches find it."""
    compiled[(1, 1, 1)]  # a launcher, for which the kernel is loaded
    _COMPILED.setdefault(_key(instance, device), compiled)


def is_kept(instance: Instance, device: int) -> bool:
    return _key(instance, device) in _COMPILED


def _key(instance: Instance, device: int) -> tuple:
    """Under which ``launch`` looks for it."""
    kernel = getattr(importlib.import_module(instance.module), instance.kernel)
    values = tuple(value for _, value in instance.constants)
    specialised = (
        None if kind is None else int if kind == "i32" else _of_type(kind)
        for kind in instance.types
    )
    return id(kernel), device, instance.warps, instance.stages, values, *specialised


def _of_type(kind: str) -> tuple[torch.dtype, bool]:
    """A tensor's dtype, and whether its address is a multiple of 16."""
    pointer, _, alignment = kind.partition(":")
    return _DTYPES[pointer], not alignment


def _specialised(argument: Tensor | int | None) -> Any:
    """None, or a number's type: most arguments are numbers, of whose values nothing depends."""
    if argument is None or isinstance(argument, int):
        return None if argument is None else int
    return argument.dtype, argument.data_ptr() % 16 == 0


def _type_of(tensor: Tensor) -> str:
    return _TYPES[tensor.dtype] + ("" if tensor.data_ptr() % 16 == 0 else ":1")


def _instance(
    kernel: Any,
    arguments: Sequence[Tensor | int | None],
    constants: Mapping[str, Any],
    warps: int,
    stages: int,
) -> Instance:
    """Tensors of the device "meta" have the address 0, as if the allocator had handed them out."""
    types = tuple(
        None if a is None else "i32" if isinstance(a, int) else _type_of(a) for a in arguments
    )
    function = kernel.fn
    constant = tuple(constants.items())
    return Instance(function.__module__, function.__name__, types, constant, warps, stages)
