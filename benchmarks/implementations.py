"""The ways to run a network that are compared, under the names that the CSV files use."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

import effv2_kernels

#: All, in the order in which tables show them.
INFERENCE = (
    "eager_nchw",
    "eager_nhwc",
    "compile_default",
    "compile_reduce_overhead",
    "compile_max_autotune",
    "compile_freezing",
    "effv2",
    "effv2_graph",
)
TRAINING = ("eager_nchw", "eager_nhwc", "compile_default", "effv2")
#: What every other implementation is checked against, next to float64.
EAGER = "eager_nchw"
_MODES = {
    "compile_default": {},
    "compile_reduce_overhead": {"mode": "reduce-overhead"},
    "compile_max_autotune": {"mode": "max-autotune"},
    "compile_freezing": {"options": {"freezing": True}},
}


class NotAvailable(Exception):
    """An implementation that cannot run this case, with the reason."""


class WrongOutput(Exception):
    """An implementation that must not be timed: what it computes is wrong."""


def known(names: Sequence[str], those: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. Raises ValueError for one that is not among ``those``."""
    unknown = sorted(set(names) - set(those))
    if unknown:
        raise ValueError(
            f"--impl: unknown here are {', '.join(unknown)}; known: {', '.join(those)}"
        )
    return tuple(dict.fromkeys(names))


def precision(dtype: str, device: torch.device) -> tuple[torch.dtype, AbstractContextManager]:
    """The dtype of weights and images, and the context to run in: "autocast_bfloat16" keeps both in
    float32."""
    name = dtype.removeprefix("autocast_")
    if name == dtype:
        return getattr(torch, dtype), nullcontext()
    return torch.float32, torch.autocast(device.type, getattr(torch, name))


def inference(name: str, model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """One implementation of ``model`` on ``images``; the model itself is left as it is.

    Build it outside of ``torch.inference_mode``: weights that are made within have no version
    counters, and nothing could be cached. Raises NotAvailable.
    """
    if name == "eager_nchw":
        return lambda: model(images)
    nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    if name == "eager_nhwc":
        return lambda: nhwc(images)
    if name in _MODES:
        compiled = torch.compile(nhwc, dynamic=False, **_MODES[name])
        return lambda: compiled(images)
    patched(nhwc)
    if images.is_cuda and images.dtype != torch.float32:  # in parallel, before it is needed
        effv2_kernels.warmup(nhwc, [tuple(images.shape)])
    if name == "effv2":
        return lambda: nhwc(images)
    if images.device.type != "cuda":
        raise NotAvailable("a CPU has no CUDA graphs")
    run = effv2_kernels.capture(nhwc, images)
    return lambda: run(images)


def training(name: str, model: nn.Module) -> nn.Module:
    """A copy of the model to be trained the named way. Raises NotAvailable."""
    model = copy.deepcopy(model).train()
    if name == "eager_nchw":
        return model
    model = model.to(memory_format=torch.channels_last)
    if name == "compile_default":
        return torch.compile(model, dynamic=False)  # type: ignore[return-value]
    if name == "effv2":
        patched(model)
    return model


def patched(model: nn.Module) -> None:
    """Patch in place. Raises NotAvailable for a model without a block that is known."""
    if not effv2_kernels.patch(model).patched:
        raise NotAvailable("it has no block that effv2_kernels knows")
