"""``warmup``: compile ahead what a patched model will launch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import aten, cuda, ops, triton_ops
from .launch import switched_off, targets
from .launch.targets import Target
from .patch import is_patched
from .running.inference import DISPATCHED, TRITON

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
    from .triton_ops._compile import compile_all, compile_for
    from .triton_ops._launch import is_kept, keep

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
    ``triton_ops._launch.Instance``, each once. native: the ops that the native library runs (None:
    those that it has; of what it declines, an ``expand_depthwise`` is here, all else, an uneven
    kernel say, compiles at first use). Needs no GPU: tensors are of the device "meta", and nothing
    is computed."""
    shadow = _on_meta(model, dtype)
    kind = next(shadow.parameters()).dtype

    def run() -> None:
        for size in sizes:
            shadow(torch.empty(size, dtype=kind, device="meta"))

    return recorded(run, target, kind, native)


def recorded(
    run: Callable[[], object],
    target: Target,
    dtype: torch.dtype,
    native: frozenset[str] | None = None,
) -> list[Any]:
    """The same of any calls of our ops, which ``run`` makes with tensors of the device "meta", in
    ``dtype``."""
    from .triton_ops._launch import recording

    native = ops.NATIVE_OPS if native is None else native
    with torch.no_grad(), recording(target) as found, _Recorder(native, dtype, target):
        run()
    return list(found)


def _on_meta(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy in eval mode without any data, in ``dtype`` if it is given."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        bare = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(bare, False) if isinstance(tensor, nn.Parameter) else bare
    shadow = copy.deepcopy(model, memo).eval()
    return shadow if dtype is None else shadow.to(dtype)


class _Recorder(TorchDispatchMode):
    """Lets the host side of the Triton ops run on meta tensors, which nothing is launched for; not
    of those that are switched off whole on ``target``. A native ``expand_depthwise`` may run as two
    ops, which may be Triton's."""

    def __init__(self, native: frozenset[str], kind: torch.dtype, target: Target):
        super().__init__()

        def is_off(op: str, engine: str, by_name: bool = False) -> bool:
            return bool(switched_off.why_not(op, engine, kind, target.name, by_name=by_name))

        natively = {op for op in native if not is_off(op, "cuda")}
        automatic = {k: v for k, v in triton_ops.KERNELS.items() if k not in natively}
        self._ops = {
            getattr(namespace, name).default: run
            for namespace, kernels in ((DISPATCHED, automatic), (TRITON, triton_ops.EXPLICIT))
            for name, run in kernels.items()
            if not is_off(name, "triton", by_name=namespace is TRITON)
        }
        self._target = target
        if "expand_depthwise" in natively:
            self._ops[DISPATCHED.expand_depthwise.default] = self._halves

    def _halves(self, *args: Any) -> Any:
        x, expand, depthwise, geometry = args[0], args[1:5], args[5:9], args[9:]
        stride, padding, act, _ = geometry
        sides = aten.four_sides(x, depthwise[0].shape[2:], stride, padding)
        if cuda.expand_depthwise_launch(x, expand[0], depthwise[0], stride, sides, self._target):
            return NotImplemented
        first = (x, *expand, None, (1, 1), (0, 0, 0, 0), act)
        hidden = self._run(DISPATCHED.conv_bias_act.default, first)
        return self._run(DISPATCHED.depthwise_bias_act.default, (hidden, *depthwise, *geometry))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        return self._run(func, args, kwargs)

    def _run(self, func: Any, args: tuple, kwargs: dict | None = None) -> Any:
        run = self._ops.get(func)
        found = NotImplemented if run is None else run(*args)
        return func(*args, **(kwargs or {})) if found is NotImplemented else found
