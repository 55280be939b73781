"""What the GPU tests of the convolution kernels share: an op on the device against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from effv2_kernels import _native
from tests.gpu.verdicts import described, judge
from tests.ops.cases import Arguments, Geometry, arguments, mapped, ordered, plain, tensors

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def marks() -> list[pytest.MarkDecorator]:
    """Of a module that needs a GPU and the native library."""
    why = "" if _native.load().loaded else f"native library {_native.load().reason}"
    if not torch.cuda.is_available():
        why = "no CUDA device"
    return [pytest.mark.gpu, pytest.mark.skipif(bool(why), reason=why or "it runs")]


def on_device(args: Arguments, device: str = "cuda") -> Arguments:
    """Copies on the device, each in a frame of NaN, with the strides that they have here."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        # From its first to its last element, whatever lies between them.
        spans = (s * (n - 1) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        size = sum(spans) + 1 if tensor.numel() else 0
        frame = torch.full((size + 256,), torch.nan, dtype=tensor.dtype, device=device)
        return frame.as_strided(tensor.shape, tensor.stride(), 128).copy_(tensor)

    return mapped(args, move)


def launch(op: str, args: Arguments) -> tuple[torch.Tensor, ...]:
    found = getattr(torch.ops.effv2, op).default(*ordered(op, args))
    return found if isinstance(found, tuple) else (found,)


def poison(args: Arguments) -> None:
    """Leaves NaN in the memory that the allocator hands out next."""
    size = 4 * max(t.numel() for t in tensors(args)) + 4096
    for _ in range(2):
        torch.full((size,), torch.nan, device="cuda")


def check(op: str, geometry: Geometry, **options: Any) -> tuple[torch.Tensor, ...]:
    """Runs the op on random arguments and checks it by DESIGN section 6, PyTorch's own error being
    that on the device."""
    here = arguments(op, geometry, **{"layout": "channels_last", **options})
    args = on_device(here)
    before = mapped(args, torch.Tensor.clone)
    poison(args)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = launch(op, args)
        eager = plain(op, args)
    same = zip(tensors(args), tensors(before), strict=True)
    assert all(torch.equal(a, b) for a, b in same), "an argument was changed"
    right = plain(op, mapped(here, torch.Tensor.double))
    for output, theirs, reference in zip(found, eager, right, strict=True):
        assert output.shape == reference.shape and output.dtype == theirs.dtype
        if reference.numel():
            judge(op, "cuda", described(args), output.cpu(), theirs.cpu(), reference)
    return found


def same_bits(op: str, geometry: Geometry, **options: Any) -> None:
    args = on_device(arguments(op, geometry, **{"layout": "channels_last", **options}))
    first = launch(op, args)
    for _ in range(10):
        again = launch(op, args)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def on_a_side_stream(op: str, geometry: Geometry, **options: Any) -> None:
    """The launch is on the current stream: it must see what that stream wrote just before."""
    args = on_device(arguments(op, geometry, **{"layout": "channels_last", **options}))
    expected = launch(op, args)
    source = args["x"].clone()
    args["x"].zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        args["x"].copy_(source)
        found = launch(op, args)
        torch.cuda.current_stream().synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def captured(op: str, geometry: Geometry, **options: Any) -> None:
    args = on_device(arguments(op, geometry, **{"layout": "channels_last", **options}))
    launch(op, args)  # loads the kernel, which capture would not allow
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = launch(op, args)
    args["x"].copy_(torch.randn_like(args["x"]))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, launch(op, args), strict=True))


def kernels_of(op: str, geometry: Geometry, **options: Any) -> list[str]:
    """The names of the kernels that one call launches."""
    args = on_device(arguments(op, geometry, **{"layout": "channels_last", **options}))
    launch(op, args)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        launch(op, args)
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    return [event.name for event in profile.events() if event.device_type == cuda]
