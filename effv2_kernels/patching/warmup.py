"""``warmup``: compile ahead what a patched model will launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._torch import TorchDispatchMode
from ..engines import triton as triton_ops
from ..launch import targets
from ..launch.targets import Target
from ..running.inference import DISPATCHED, TRITON
from . import macs
from .patch import is_patched

Sizes = Sequence[tuple[int, int, int, int]]


def warmup(
    model: nn.Module,
    sizes: Sizes,
    *,
    dtype: torch.dtype | None = None,
    target: Target | None = None,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Compile every Triton kernel that ``model``, patched, launches for inputs of these sizes, so
    that the first forward, or a CUDA graph's capture, compiles nothing. Returns how many kernels
    that are.

    sizes: (N, C, H, W) each; dtype: of the input, the model's by default (autocast's, if that is
    what the model will run under); target: the GPU to compile for, by default the model's: any of
    ``launch.targets.KNOWN`` can be compiled for without having it; processes: how many compile at a
    time, by default one a core; progress: called with how many kernels are done, and of how many
    that were not compiled before.

    Raises ValueError for a model that is not patched, RuntimeError for a model on no GPU without a
    ``target``, and where Triton cannot be imported or a kernel does not compile.
    """
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    if not is_patched(model):
        raise ValueError("warmup: the model is not patched; call effv2_kernels.patch(model) first")
    if triton_ops.missing():
        raise RuntimeError(f"warmup: {triton_ops.missing()}")
    if target is None and device.type != "cuda":
        raise RuntimeError(f"warmup: the model is on {device.type}; give the target to compile for")
    from ..engines.triton._compile import compile_all, compile_for
    from ..engines.triton._launch import is_kept, keep

    here = device.type == "cuda" and target is None
    chosen = targets.of_device(device) if target is None else target
    instances = launches(model, sizes, chosen, dtype=dtype)
    if not here:
        compile_all(instances, chosen, processes, progress)
        return len(instances)
    with torch.cuda.device(device):
        index = torch.cuda.current_device()
        # What another model needed is there, and the processes that compile take seconds to start.
        missing = [instance for instance in instances if not is_kept(instance, index)]
        compile_all(missing, chosen, processes, progress)
        for instance in missing:
            keep(instance, compile_for(instance, chosen), index)
    return len(instances)


def launches(
    model: nn.Module,
    sizes: Sizes,
    target: Target,
    *,
    dtype: torch.dtype | None = None,
    native: frozenset[str] | None = None,
) -> list[Any]:
    """What a patched model launches through Triton for inputs of these sizes on ``target``, as
    ``engines.triton._launch.Instance``, each once. native: the ops that the native library is to be
    taken to have (None: those that it has). Needs no GPU: tensors are of the device "meta", and
    nothing is computed."""
    shadow = macs.hollow_copy(model).eval()
    if dtype is not None:
        _cast_weights(shadow, dtype)
    kind = next(shadow.parameters()).dtype

    def run() -> None:
        for size in sizes:
            shadow(torch.empty(size, dtype=kind, device="meta"))

    return recorded(run, target, native)


def recorded(
    run: Callable[[], object],
    target: Target,
    native: frozenset[str] | None = None,
) -> list[Any]:
    """The same of any calls of our ops, which ``run`` makes with tensors of the device "meta"."""
    from ..engines.triton._launch import recording

    native = ops.NATIVE_OPS if native is None else native
    with torch.no_grad(), recording(target) as found, _Recorder(native, target):
        run()
    return list(found)


def _cast_weights(shadow: nn.Module, dtype: torch.dtype) -> None:
    """As autocast has them: norms, and the biases of convolutions, stay what they are."""
    for module in shadow.modules():
        whole = isinstance(module, nn.Linear)
        for name, parameter in module._parameters.items():
            if parameter is not None and (whole or parameter.dim() > 1):
                module._parameters[name] = nn.Parameter(parameter.to(dtype), False)


class _Recorder(TorchDispatchMode):
    """Lets the host side of the Triton ops run on meta tensors, which nothing is launched for:
    wherever Triton would be chosen on ``target``."""

    def __init__(self, native: frozenset[str], target: Target):
        super().__init__()
        names = {getattr(DISPATCHED, name).default: (name, False) for name in ops.OPS}
        names |= {getattr(TRITON, name).default: (name, True) for name in ops.OPS}
        self._names = names
        self._engines = [_Recorded(native, target, by_name) for by_name in (False, True)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        if func not in self._names:
            return func(*args, **(kwargs or {}))
        name, by_name = self._names[func]
        return getattr(self._engines[by_name], name).default(*args)


class _Recorded(ops.Named):
    """The engines that would be chosen, of which Triton's run."""

    def __init__(self, native: frozenset[str], target: Target, by_name: bool):
        super().__init__(ops.OPS, "cuda", target=target, by_name=by_name)
        self._native = native

    def _choose(self, op: ops.Op, arguments: Sequence[Any]) -> ops.Chosen:
        return op.choose(arguments, self._device, **self._choice, built=op.name in self._native)

    def _compute(self, op: ops.Op, engine: ops.Engine, arguments: Sequence[Any]) -> Any:
        if engine.name == "triton" and engine.run is not None:
            return engine.run(*arguments)
        return super()._compute(op, engine, arguments)
