"""The ops on Triton: the host side, which checks what it can do, asks ``launch`` for tiles and
launches ``triton_kernels``. In the order of a call: the op's file, ``_arguments``, ``_launch``.

Nothing here imports Triton before a kernel is to run: an install without it imports this package.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from ...launch.targets import Target

_WHERE = {
    "stem": "conv",
    "conv_bias_act": "conv",
    "gated_project": "conv",
    "fused_mbconv": "fused_mbconv",
    "conv_act_pool": "pool",
    "depthwise_bias_act": "depthwise",
}


@functools.cache
def missing() -> str:
    """Why Triton cannot be imported, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    try:
        importlib.import_module("triton")
    except Exception as error:  # whatever it says is the reason
        return f"the package triton cannot be imported: {error}"
    return ""


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU. Set the variable before anything
    imports a kernel: it is looked at then."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{_WHERE[name]}")


def _run(name: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        return getattr(_module(name), name)(*arguments)

    return run


def _why_not(name: str) -> Callable[..., str | None]:
    def why_not(arguments: Sequence[Any], target: Target | None) -> str | None:
        return getattr(_module(name), f"why_not_{name}")(arguments, target)

    return why_not


def why_slower(name: str, dtype: torch.dtype) -> str | None:
    """Why something else is expected to be faster. Triton multiplies IEEE float32 on no tensor
    core, and cuDNN's tiles for it are better; its TF32 cuts operands off where cuDNN rounds them,
    and errs three times as much (measured). A depthwise convolution has no use for a tensor core
    anyway."""
    if dtype != torch.float32 or name == "depthwise_bias_act":
        return None
    return "in float32 cuDNN is faster, and as exact"


#: Why ``fused_mbconv`` is not one kernel.
TOO_LARGE = "no tile holds the expanded channels, or two convolutions are expected to be faster"
#: By the op's name: what computes it, and why it does not (of the arguments, and the target).
RUN: dict[str, Callable[..., Any]] = {name: _run(name) for name in _WHERE}
WHY_NOT: dict[str, Callable[..., str | None]] = {name: _why_not(name) for name in _WHERE}
