"""Registers an op with PyTorch: schema, fake, devices, autograd, vmap and autocast.

``torch.library.Library`` with ``define`` and ``impl`` costs about half the host time of the
``custom_op`` decorator, which is what a batch of one feels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice, repeat
from typing import Any

import torch
from torch import Tensor

from .._torch import below_autocast, in_forward_mode
from ..engines import triton as triton_ops
from ._op import Engines, Op, tell

NAMESPACE = "effv2"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
# The same ops for whoever asks for Triton by name: there it runs also what has another kernel.
TRITON_NAMESPACE = "effv2_triton"
TRITON_LIBRARY = torch.library.Library(TRITON_NAMESPACE, "DEF")
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)


def register(op: Op) -> None:
    """Define ``effv2::<op>`` and ``effv2_triton::<op>``, with all that dispatch asks of an op."""
    _REGISTERED[op.name] = op
    name = _define(LIBRARY, op)
    LIBRARY.impl(name, _checked(op, op.cpu), "CPU")
    if op.has("onednn"):
        # Only our own runners pack weights, for shapes that went through the checks before.
        LIBRARY.impl(name, op.cpu, "MkldnnCPU")
    LIBRARY.impl(name, _checked(op, getattr(ON_GPU, name).default), "CUDA")
    name = _define(TRITON_LIBRARY, op)
    for device, engines in _BY_NAME.items():
        TRITON_LIBRARY.impl(name, _checked(op, getattr(engines, name).default), device)


# Whether Triton's interpreter was asked for when the ops were registered.
TRITON_INTERPRETED = triton_ops.interpreted()
_REGISTERED: dict[str, Op] = {}
#: What runs on CUDA tensors.
ON_GPU = Engines(_REGISTERED, "cuda", tell)
_BY_NAME = {"CUDA": Engines(_REGISTERED, "cuda", tell, by_name=True)}
if TRITON_INTERPRETED:
    _BY_NAME["CPU"] = Engines(_REGISTERED, "cpu", by_name=True)


def _define(library: torch.library.Library, op: Op) -> str:
    """What an op has whatever runs it: its schema, fake, autograd, vmap and autocast."""
    qualified = f"{library.ns}::{op.name}"
    library.define(op.schema, tags=TAGS)
    torch.library.register_fake(qualified, _after(op.check, op.fake), lib=library)
    _register_autograd(library, qualified, op.aten)
    _register_vmap(library, qualified)
    for device in ("CPU", "CUDA"):
        library.impl(op.name, _autocast(qualified, device), f"Autocast{device}")
    return op.name


def _after(check: Callable, run: Callable) -> Callable:
    def checked(*args: Any) -> Any:
        check(*args)
        return run(*args)

    return checked


def _checked(op: Op, implementation: Callable) -> Callable:
    """The same contract in every implementation."""
    check = op.check

    def run(*args: Any) -> Any:
        if in_forward_mode():  # PyTorch would drop the tangents without a word
            raise RuntimeError(f"effv2::{op.name}: forward-mode differentiation is not supported")
        check(*args)
        return implementation(*args)

    return run


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
        none: tuple[Any, ...] = tuple([] if count == 0 else None for count in ctx.counts)
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
    passed_by = below_autocast(device)
    device_type = device.lower()

    def run(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        with passed_by():
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
