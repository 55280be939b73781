"""The native squeeze_excite_gate on the device against float64, by DESIGN section 6."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import effv2_kernels  # noqa: F401  (defines the op and loads the library)
from effv2_kernels import _native
from tests.gpu.verdicts import judge
from tests.support import relative_error


def why_skip() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    return "" if _native.load().loaded else f"native library {_native.load().reason}"


WHY_SKIP = why_skip()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(WHY_SKIP), reason=WHY_SKIP or "it runs"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ACTS = {
    "none": lambda x: x,
    "silu": F.silu,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
}
GATES = {"sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid}


@pytest.fixture(autouse=True)
def _full_precision_reference(full_precision: None) -> None:
    torch.manual_seed(0)


def inputs(n: int, m: int, r: int, dtype: torch.dtype, offset: int = 0) -> list[torch.Tensor]:
    """Random inputs between NaN, `offset` elements past an aligned address."""
    sizes = [((n, m), 1.0), ((r, m), m**-0.5), ((r,), 1.0), ((m, r), 4 * r**-0.5), ((m,), 1.0)]
    tensors = []
    for size, scale in sizes:
        values = torch.randn(size, device="cuda") * scale
        buffer = torch.full((values.numel() + 128,), torch.nan, dtype=dtype, device="cuda")
        view = buffer[64 + offset : 64 + offset + values.numel()].view(size)
        tensors.append(view.copy_(values))
    return tensors


def composite(tensors: list[torch.Tensor], act: str, gate: str) -> torch.Tensor:
    pooled, w1, b1, w2, b2 = tensors
    return GATES[gate](F.linear(ACTS[act](F.linear(pooled, w1, b1)), w2, b2))


def poison(n: int, m: int, dtype: torch.dtype) -> None:
    """Leaves NaN in the memory that the allocator hands out next."""
    torch.full((n, m), torch.nan, dtype=dtype, device="cuda")


def check(tensors: list[torch.Tensor], act: str = "silu", gate: str = "sigmoid") -> torch.Tensor:
    pooled = tensors[0]
    before = [t.clone() for t in tensors]
    poison(*pooled.shape, pooled.dtype)
    output = torch.ops.effv2.squeeze_excite_gate(*tensors, act, gate)
    assert output.shape == pooled.shape and output.dtype == pooled.dtype
    assert output.is_contiguous() and output.device == pooled.device
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True)), "an input changed"
    want = composite([t.double() for t in tensors], act, gate)
    case = f"n {pooled.shape[0]}, m {pooled.shape[1]}, r {tensors[1].shape[0]}, {act}, {gate}"
    judge("squeeze_excite_gate", "cuda", case, output, composite(tensors, act, gate), want)
    return output


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 7, 33, 128, 257, 1024])
@pytest.mark.parametrize(
    ("m", "r"), [(96, 24), (188, 20), (256, 16), (1056, 44), (1536, 64), (3840, 160), (7, 1)]
)
def test_matches_float64(n: int, m: int, r: int, dtype: torch.dtype) -> None:
    check(inputs(n, m, r, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m", "r"), [(2, 1021, 37), (1, 20011, 3), (300, 40, 3001)])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_awkward_sizes_and_alignment(n, m, r, offset, dtype) -> None:
    check(inputs(n, m, r, dtype, offset))


def test_hidden_vector_beyond_shared_memory() -> None:
    check(inputs(5, 64, 20001, torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("act", ACTS)
def test_activations(act: str, gate: str, dtype: torch.dtype) -> None:
    check(inputs(3, 48, 12, dtype), act, gate)


def test_nan_goes_through() -> None:
    tensors = inputs(2, 64, 16, torch.float16)
    tensors[0][1, 5] = torch.nan
    for act in ACTS:
        output = torch.ops.effv2.squeeze_excite_gate(*tensors, act, "hardsigmoid")
        assert output[1].isnan().all() and not output[0].isnan().any()


def test_no_images() -> None:
    tensors = inputs(1, 64, 16, torch.float16)
    tensors[0] = tensors[0][:0]
    assert torch.ops.effv2.squeeze_excite_gate(*tensors).shape == (0, 64)


@pytest.mark.parametrize("n", [1, 64, 600])
def test_same_bits_every_time(n: int) -> None:
    tensors = inputs(n, 960, 40, torch.bfloat16)
    first = torch.ops.effv2.squeeze_excite_gate(*tensors)
    for _ in range(20):
        assert torch.equal(first, torch.ops.effv2.squeeze_excite_gate(*tensors))


def test_side_stream() -> None:
    """The launch is on the current stream: it must see what that stream wrote just before."""
    tensors = inputs(1, 1536, 64, torch.float32)
    expected = check(tensors)
    source = tensors[0].clone()
    tensors[0].zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        tensors[0].copy_(source)
        output = torch.ops.effv2.squeeze_excite_gate(*tensors)
        torch.cuda.current_stream().synchronize()
    assert torch.equal(output, expected)


@pytest.mark.parametrize("n", [1, 300])
def test_graph_capture(n: int) -> None:
    tensors = inputs(n, 1536, 64, torch.bfloat16)
    torch.ops.effv2.squeeze_excite_gate(*tensors)  # loads the kernel, which capture would not allow
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = torch.ops.effv2.squeeze_excite_gate(*tensors)
    tensors[0].copy_(torch.randn_like(tensors[0]))
    graph.replay()
    assert torch.equal(output, torch.ops.effv2.squeeze_excite_gate(*tensors))


def test_a_device_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    tensors = [t.to("cuda:1") for t in inputs(3, 960, 40, torch.float16)]
    with torch.cuda.device(0):
        output = torch.ops.effv2.squeeze_excite_gate(*tensors)
    want = composite([t.double() for t in tensors], "silu", "sigmoid")
    assert output.device == tensors[0].device and relative_error(output, want) < 2e-3


def test_devices_do_not_mix() -> None:
    tensors = inputs(2, 64, 16, torch.float16)
    tensors[2] = tensors[2].cpu()
    with pytest.raises(RuntimeError, match="reduce_bias"):
        torch.ops.effv2.squeeze_excite_gate(*tensors)


def test_one_launch() -> None:
    tensors = inputs(1, 1536, 64, torch.bfloat16)
    torch.ops.effv2.squeeze_excite_gate(*tensors)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.ops.effv2.squeeze_excite_gate(*tensors)
        torch.cuda.synchronize()
    kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 1 and "squeeze_excite_gate_kernel" in kernels[0].name
