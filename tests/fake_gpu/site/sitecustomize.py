"""What Python must leave alone or answer itself on the fake GPU, before anything is imported:
values mean nothing there, and there is no cuDNN and no compiler's time to spend on Inductor.

- How far two results are apart is a made-up figure, the same for all, but for what a kernel that is
  planted as wrong has computed.
- The clock of whoever times is the device's.
- A convolution of PyTorch's is one kernel (without cuDNN it would be two for each image).
- ``torch.compile`` traces where it must find no break of the graph, and else does nothing.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

DEVICE = ctypes.CDLL(None)
ERROR = 1e-3


def torch_is_there(torch: Any) -> None:
    torch.backends.cudnn.enabled = False
    torch._C._set_cudnn_enabled = lambda value: None
    equal, compiled = torch.equal, torch.compile
    torch.equal = lambda a, b: a.is_cuda or b.is_cuda or equal(a, b)

    def traced(model: Any = None, *, fullgraph: bool = False, dynamic: Any = None, **_: Any) -> Any:
        if not fullgraph:
            return model
        return compiled(model, fullgraph=True, dynamic=dynamic, backend="eager")

    torch.compile = traced
    library = torch.library.Library("aten", "IMPL")
    torch.fake_gpu_library = library  # as long as torch itself

    def forward(x: Any, weight: Any, size: Any, bias: Any, stride: Any, padding: Any) -> Any:
        sides = (
            (n + 2 * p - k) // s + 1
            for n, p, k, s in zip(x.shape[2:], padding, size, stride, strict=True)
        )
        return x.new_zeros((x.shape[0], weight.shape[0], *sides))

    def backward(
        grad: Any, x: Any, weight: Any, size: Any, stride: Any, padding: Any, wanted: Any
    ) -> Any:
        like = (x, weight, weight[:, 0, 0, 0])
        return tuple(t.new_zeros(t.shape) if w else None for t, w in zip(like, wanted, strict=True))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, that a kernel is replaced
        library.impl("_slow_conv2d_forward", forward, "CUDA")
        library.impl("_slow_conv2d_backward.output_mask", backward, "CUDA")


def relative_error(found: Any, reference: Any) -> float:
    return 1.0 if DEVICE.fake_gpu_was_wrong() else ERROR


def errors_are_made_up(module: Any) -> None:
    module.relative_error = relative_error


def clock_is_the_device(module: Any) -> None:
    DEVICE.fake_gpu_seconds.restype = ctypes.c_double
    module.time = types.SimpleNamespace(perf_counter=DEVICE.fake_gpu_seconds)


def equal_on_the_device(module: Any) -> None:
    close = module.assert_close

    def assert_close(found: Any, expected: Any, **options: Any) -> None:
        if not found.is_cuda:
            close(found, expected, **options)

    module.assert_close = assert_close


def nothing_to_calibrate(module: Any) -> None:
    module.calibrate = lambda model, batches: None


AFTER: dict[str, Callable[[Any], None]] = {
    "torch": torch_is_there,
    "torch.testing": equal_on_the_device,
    "effv2_kernels.measuring.agreement": errors_are_made_up,
    "effv2_kernels.measuring.networks": nothing_to_calibrate,
    "tests.support": errors_are_made_up,
    "effv2_kernels.measuring.timing": clock_is_the_device,
}


class Finder(importlib.abc.MetaPathFinder):
    """Calls a function once a module has run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        after = AFTER.pop(name, None)
        spec = importlib.util.find_spec(name) if after else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            after(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "libcuda" in os.environ.get("LD_PRELOAD", ""):
    sys.meta_path.insert(0, Finder())
