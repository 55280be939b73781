"""The ops on Triton: the host side, which checks what it can do, asks ``launch`` for tiles and
launches ``triton_kernels``. In the order of a call: the op's file, ``_arguments``, ``_launch``.

Nothing here imports Triton before a kernel is to run: an install without it imports this package.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

_WHERE = {
    "stem": "conv",
    "conv_bias_act": "conv",
    "gated_project": "conv",
    "fused_mbconv": "fused_mbconv",
    "conv_act_pool": "pool",
    "depthwise_bias_act": "depthwise",
    "expand_depthwise": "depthwise",
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
def _function(name: str) -> Callable | None:
    if missing():
        return None
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def _explicit(name: str) -> Callable:
    def run(*args: Any) -> Any:
        function = _function(name)
        return NotImplemented if function is None else function(*args)

    return run


def _automatic(name: str) -> Callable:
    run_always = _explicit(name)

    def run(*args: Any) -> Any:
        return run_always(*args) if _is_expected_to_gain(name, args[1].dtype) else NotImplemented

    return run


def _is_expected_to_gain(name: str, dtype: torch.dtype) -> bool:
    """Triton multiplies IEEE float32 on no tensor core, and cuDNN's tiles for it are better; its
    TF32 cuts operands off where cuDNN rounds them, and errs three times as much (measured). A
    depthwise convolution has no use for a tensor core anyway."""
    return dtype != torch.float32 or name == "depthwise_bias_act"


def has(name: str, dtype: torch.dtype, *, explicit: bool) -> bool:
    """Whether a kernel here runs the op in ``dtype``, where it was asked for by name or not."""
    if name not in _WHERE or dtype == torch.float64 or missing():
        return False
    return explicit or _is_expected_to_gain(name, dtype)


# What runs an op on Triton, or returns NotImplemented: wherever it was asked for by name, and
# where it is one of several (there it also declines what others are expected to do faster).
EXPLICIT: dict[str, Callable] = {name: _explicit(name) for name in _WHERE}
KERNELS: dict[str, Callable] = {name: _automatic(name) for name in _WHERE}
