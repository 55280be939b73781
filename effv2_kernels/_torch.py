"""Every private name of PyTorch that the package uses, in one place: what a new version may take
away. ``tests/test_private_names.py`` asks the installed one for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["FakeTensor", "TorchDispatchMode", "pytree"]

#: Hooks on every module there is.
GLOBAL_HOOKS = (nn_module._global_forward_hooks, nn_module._global_forward_pre_hooks)
GLOBAL_BACKWARD_HOOKS = (nn_module._global_backward_hooks, nn_module._global_backward_pre_hooks)
#: A context in which autograd is passed by.
below_autograd: Callable[[], Any] = torch._C._AutoDispatchBelowAutograd
#: Whether torch.backends.mkldnn.enabled is set, which a user may change at any time.
onednn_enabled: Callable[[], bool] = torch._C._get_mkldnn_enabled


def below_autocast(device: str) -> Callable[[], Any]:
    """A context in which autocast of "CPU" or "CUDA" is passed by."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))
    return lambda: torch._C._ExcludeDispatchKeyGuard(keys)


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is under way."""
    return forward_ad._current_level >= 0


def is_transformed() -> bool:
    """Whether a functorch transform, forward-mode differentiation or ``torch.jit.trace``, which
    would take the folded weights for constants, is under way."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or in_forward_mode()
        or torch._C._get_tracing_state() is not None
    )


def is_one_of_many(gradient: torch.Tensor) -> bool:
    """Whether it stands for several at once (``is_grads_batched``), which only PyTorch's own
    operators know."""
    return torch._C._functorch.is_legacy_batchedtensor(gradient)


def is_watched() -> bool:
    """Whether a profiler or a dispatch mode is to see which ops run."""
    return torch.autograd._profiler_enabled() or torch._C._len_torch_dispatch_stack() > 0


@torch.compiler.assume_constant_result
def is_exporting() -> bool:
    """Whether ``torch.export`` traces. Dynamo takes PyTorch's own function for True wherever it
    traces, under ``torch.compile`` too; this one it calls."""
    return torch.compiler.is_exporting()


def onednn_has(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves in that 16-bit dtype on this processor."""
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_fp16_supported()


def onednn_pack(*arguments: Any) -> torch.Tensor:
    """A convolution's weight in oneDNN's layout."""
    return torch.ops.mkldnn._reorder_convolution_weight(*arguments)


def onednn_conv() -> Any:
    """oneDNN's convolution, an activation (``.default``) or a sum (``.binary``) fused into it."""
    return torch.ops.mkldnn._convolution_pointwise


def onednn_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x weight^T by oneDNN, of matrices with any strides; MKL's has half its speed on an AMD."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")
