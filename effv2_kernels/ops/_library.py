"""Registers an op of the ``effv2`` namespace: schema, fake, CPU, aten, autograd and autocast.

``torch.library.Library`` with ``define`` and ``impl`` costs about half the host time of the
``custom_op`` decorator, which is what a batch of one feels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice, repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

NAMESPACE = "effv2"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
# The same ops for whoever asks for Triton by name: there it runs also what has another kernel.
TRITON_NAMESPACE = "effv2_triton"
TRITON_LIBRARY = torch.library.Library(TRITON_NAMESPACE, "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)


def register(
    schema: str, *, fake: Callable, aten: Callable, cpu: Callable, prepacked: bool = False
) -> str:
    """Define the op ``effv2::<schema>`` and return its name.

    fake: shapes, dtypes and exact strides of the outputs; also checks the arguments.
    aten: right on every device and dtype, differentiable; runs wherever no kernel of ours does,
        and gives the backward.
    cpu: what CPU tensors run.
    prepacked: the op takes oneDNN's opaque weights too (see ``cpu.prepack``).
    """
    name = _define(LIBRARY, schema, fake, aten)
    LIBRARY.impl(name, _checked(name, fake, cpu), "CPU")
    if prepacked:
        # Only our own runners pack, and only for shapes that went through the checks before.
        LIBRARY.impl(name, cpu, "MkldnnCPU")
    return name


def register_cuda(name: str, fake: Callable, implementations: Sequence[Callable]) -> None:
    """Let CUDA tensors run the first of ``implementations`` that does not decline, by returning
    NotImplemented, what it is asked for; the last one never does. Replaces what the native library
    brought (see ``brought``)."""
    run = _checked(name, fake, first_that_can(name, implementations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, that a kernel is replaced
        LIBRARY.impl(name, run, "CUDA", allow_override=True)


def brought(name: str) -> Callable:
    """What the native library registered whole for CUDA tensors, as a function: it stays callable
    when something else is registered in its place."""
    kernel = torch.library.get_kernel(f"{NAMESPACE}::{name}", "CUDA")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

    def run(*args: Any) -> Any:
        return kernel.call_boxed(keys, *args)

    return run


def register_triton(
    schema: str,
    *,
    fake: Callable,
    aten: Callable,
    implementations: Sequence[Callable],
    devices: Sequence[str],
) -> None:
    """Define the op ``effv2_triton::<schema>``, which runs the first of ``implementations`` that
    does not decline on tensors of each of ``devices`` (dispatch keys); all else as in ``register``.
    """
    name = _define(TRITON_LIBRARY, schema, fake, aten)
    for device in devices:
        run = _checked(name, fake, first_that_can(name, implementations))
        TRITON_LIBRARY.impl(name, run, device)


def _define(library: torch.library.Library, schema: str, fake: Callable, aten: Callable) -> str:
    """What an op has whatever runs it: its schema, fake, autograd and autocast."""
    name = schema.partition("(")[0]
    qualified = f"{library.ns}::{name}"
    library.define(schema, tags=_TAGS)
    torch.library.register_fake(qualified, fake, lib=library)
    _register_autograd(library, qualified, aten)
    _register_vmap(library, qualified)
    for device in ("CPU", "CUDA"):
        library.impl(name, _autocast(qualified, device), f"Autocast{device}")
    return name


def first_that_can(name: str, implementations: Sequence[Callable]) -> Callable:
    if len(implementations) == 1:
        return implementations[0]

    def run(*args: Any) -> Any:
        for implementation in implementations:
            result = implementation(*args)
            if result is not NotImplemented:
                return result
        raise AssertionError(f"effv2::{name}: the last implementation declined")

    return run


def has_kernel(name: str, dispatch_key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", dispatch_key)


def _checked(name: str, fake: Callable, implementation: Callable) -> Callable:
    """The same contract in every implementation: the fake's module-level ``check`` runs first."""
    check = fake.check  # type: ignore[attr-defined]

    def run(*args: Any) -> Any:
        if forward_ad._current_level >= 0:  # PyTorch would drop the tangents without a word
            raise RuntimeError(f"effv2::{name}: forward-mode differentiation is not supported")
        check(*args)
        return implementation(*args)

    return run


def fake_of(check: Callable) -> Callable:
    """Decorator of a fake: attaches ``check`` to it and runs it first."""

    def decorate(shape_function: Callable) -> Callable:
        def fake(*args: Any) -> Any:
            check(*args)
            return shape_function(*args)

        fake.check = check  # type: ignore[attr-defined]
        return fake

    return decorate


def _register_autograd(library: torch.library.Library, qualified: str, aten: Callable) -> None:
    """Backward by recomputing ``aten``: exact and simple, to any order, for occasional gradients
    through an inference op. Training has kernels of its own and does not come through here."""

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.save_for_backward(*_tensors(inputs))
        ctx.others = tuple(None if _holds_tensors(a) else a for a in inputs)
        # How many tensors each argument is: None for one that is no list.
        ctx.counts = tuple(len(a) if isinstance(a, list) else None for a in inputs)
        ctx.is_tensor = tuple(map(_holds_tensors, inputs))

    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        again = torch.is_grad_enabled()  # a gradient of this gradient will be asked for
        tensors = ctx.saved_tensors
        # One flag a tensor, in a list where the argument is one.
        # Arguments that were left to their defaults have none.
        needs = [n for n, t in zip(ctx.needs_input_grad, ctx.is_tensor, strict=False) if t]
        flat_needs = [f for need in needs for f in (need if isinstance(need, list) else [need])]
        with torch.enable_grad(), _no_autocast(tensors[0].device.type):
            own = [_own(t, f, again) for t, f in zip(tensors, flat_needs, strict=True)]
            outputs = aten(*_arranged(own, ctx.is_tensor, ctx.counts, ctx.others))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            used = [
                (o, g)
                for o, g in zip(outputs, grads, strict=True)
                if g is not None and o.requires_grad
            ]
            found = iter(
                torch.autograd.grad(
                    [o for o, _ in used],
                    [t for t, need in zip(own, flat_needs, strict=True) if need],
                    [g for _, g in used],
                    allow_unused=True,
                    create_graph=again,
                )
            )
        result = [next(found) if need else None for need in flat_needs]
        # PyTorch wants an empty list for an empty list, whatever it is a list of.
        none = tuple([] if count == 0 else None for count in ctx.counts)
        return tuple(_arranged(result, ctx.is_tensor, ctx.counts, none))

    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=library)


def _register_vmap(library: torch.library.Library, qualified: str) -> None:
    """A loop over the samples: slow and right. PyTorch's own does not know lists of tensors."""

    def looped(info: Any, in_dims: tuple, *args: Any) -> Any:
        samples = [
            _overload(qualified)(*map(_sample, args, in_dims, repeat(i)))
            for i in range(info.batch_size)
        ]
        if isinstance(samples[0], Tensor):
            return torch.stack(samples), 0
        return tuple(map(torch.stack, zip(*samples, strict=True))), (0,) * len(samples[0])

    torch.library.register_vmap(qualified, looped, lib=library)


def _sample(argument: Any, dim: Any, index: int) -> Any:
    if isinstance(argument, list):
        dims = dim if isinstance(dim, list) else repeat(dim)
        return [_sample(part, own, index) for part, own in zip(argument, dims, strict=False)]
    return argument if dim is None else argument.select(dim, index)


def _holds_tensors(argument: Any) -> bool:
    """Whether it is a tensor or a list of them."""
    if isinstance(argument, list):
        return bool(argument) and isinstance(argument[0], Tensor)
    return isinstance(argument, Tensor)


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    for argument in filter(_holds_tensors, arguments):
        yield from argument if isinstance(argument, list) else (argument,)


def _arranged(
    values: Sequence[Any],
    is_tensor: Sequence[bool],
    counts: Sequence[int | None],
    others: Sequence[Any],
) -> Iterator[Any]:
    """``values``, one a tensor, where the tensors were among the arguments."""
    rest = iter(values)
    for tensor, count, other in zip(is_tensor, counts, others, strict=True):
        if not tensor:
            yield other
        else:
            yield next(rest) if count is None else list(islice(rest, count))


def _own(tensor: Tensor, wanted: bool, again: bool) -> Tensor:
    """The argument as a tensor of its own, so that one passed twice gets two gradients; still a
    function of what was passed if the backward is to be differentiated ``again``."""
    if not wanted:
        return tensor.detach()
    return tensor.view_as(tensor) if again else tensor.detach().requires_grad_()


def _no_autocast(device_type: str) -> AbstractContextManager:
    """The casts were made (and recorded) before the op."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _autocast(qualified: str, device: str) -> Callable:
    """Under autocast an op computes in autocast's dtype, as a convolution does."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))
    device_type = device.lower()

    def run(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return _overload(qualified)(*(_cast(a, dtype) for a in args))

    return run


def _overload(qualified: str) -> Callable:
    namespace, _, name = qualified.partition("::")
    return getattr(getattr(torch.ops, namespace), name).default


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor) or value.is_mkldnn:
        return value
    castable = value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if castable else value
