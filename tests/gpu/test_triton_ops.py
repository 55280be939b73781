"""The Triton ops on the device against float64, by DESIGN section 6."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from effv2_kernels.engines import triton as triton_ops
from effv2_kernels.engines.triton import _arguments, _launch, conv
from effv2_kernels.launch import targets
from effv2_kernels.launch.triton.conv import Shape, candidates
from effv2_kernels.patching.backends import backends
from tests.gpu.verdicts import described, judge
from tests.ops.cases import (
    ACTS,
    GEOMETRIES,
    LAYOUTS,
    NORMS,
    SMALL,
    WINDOWED,
    Arguments,
    Geometry,
    arguments,
    mapped,
    ordered,
    plain,
    tensors,
)

WHY_SKIP = "" if torch.cuda.is_available() else "no CUDA device"
WHY_SKIP = WHY_SKIP or ("" if backends()["triton"].available else backends()["triton"].reason)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(WHY_SKIP), reason=WHY_SKIP or "it runs"),
]
OPS = (*triton_ops.RUN, "expand_depthwise")
# Input and output (or expanded) channels of V2-S to XL, and awkward ones.
CHANNELS = ((24, 96), (96, 384), (160, 960), (3, 24), (7, 33))


@pytest.fixture(params=["bfloat16", "float16", "ieee", "tf32"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """float32 where PyTorch may round operands to TF32, too: ours never are."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    rounds = request.param == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = rounds
    yield getattr(torch, request.param, torch.float32)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def on_gpu(args: Arguments, device: str = "cuda") -> Arguments:
    """The arguments there, between NaN, in the same strides."""

    def move(tensor: Tensor) -> Tensor:
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        frame = torch.full((size + 128,), torch.nan, dtype=tensor.dtype, device=device)
        offset = 64 + tensor.storage_offset()
        return frame.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)

    return mapped(args, move)


def run(op: str, args: Arguments) -> tuple[Tensor, ...]:
    found = getattr(torch.ops.effv2_triton, op).default(*ordered(op, args))
    return found if isinstance(found, tuple) else (found,)


def check(op: str, args: Arguments) -> tuple[Tensor, ...]:
    before = [t.clone() for t in tensors(args)]
    reference = plain(op, mapped(args, Tensor.double))
    eager = plain(op, args)
    for right in reference:  # leaves NaN in the memory that the allocator hands out next
        torch.full_like(right, torch.nan, dtype=eager[0].dtype)
    found = run(op, args)
    same = zip(before, tensors(args), strict=True)
    assert all(torch.equal(a, b) for a, b in same), "an argument was written"
    for output, theirs, right in zip(found, eager, reference, strict=True):
        assert output.shape == right.shape and output.dtype == theirs.dtype
        if right.numel():
            judge(op, "triton", described(args), output, theirs, right)
    return found


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("op", WINDOWED)
def test_windows(op: str, name: str, dtype: torch.dtype) -> None:
    seed = list(GEOMETRIES).index(name)
    channels, extra = CHANNELS[seed % len(CHANNELS)], seed % 2 == 0
    more = {"norm": NORMS[seed % 3], "bias": seed % 2 == 0}
    args = arguments(op, GEOMETRIES[name], dtype=dtype, channels=channels, extra=extra, **more)
    check(op, on_gpu(args))


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_channels(op: str, channels: tuple[int, int], dtype: torch.dtype) -> None:
    pad = 0 if op in ("gated_project", "conv_act_pool") else 1
    geometry = Geometry((24, 24), (3, 3) if pad else (1, 1), (1, 1), (pad,) * 4)
    for batch in (1, 5):
        check(op, on_gpu(arguments(op, geometry, dtype=dtype, channels=channels, batch=batch)))


@pytest.mark.parametrize(("k", "o"), [(1536, 256), (3840, 640)])
@pytest.mark.parametrize("batch", [1, 3, 128])
def test_gated_project_of_the_last_stages(batch: int, k: int, o: int) -> None:
    """One image is 144 rows: K is split. 3 images: gate rows straddle tiles."""
    geometry = Geometry((12, 12), (1, 1))
    for dtype in (torch.bfloat16, torch.float16):
        args = arguments("gated_project", geometry, dtype=dtype, channels=(k, o), batch=batch)
        check("gated_project", on_gpu(args))


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("channels", "out"), [(16, 64), (64, 256), (80, 100), (160, 960), (192, 768)]
)
def test_pointwise_with_weights_that_stay(
    channels: int, out: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the launches that may be chosen; pixels that fill no tile, for fewer tiles than there
    are programs and for many more; with a residual and without."""
    target = targets.of_device(torch.device("cuda"))
    launches = candidates(Shape(1 << 20, channels, out, 1), kind, target)
    streams = [choice for choice in launches if choice.resident]
    if not target.has_wgmma:
        assert not streams
        pytest.skip("only Hopper's products read weights from shared memory")
    calls: list[None] = []
    usual = conv.stream
    monkeypatch.setattr(conv, "stream", lambda *args: (calls.append(None), usual(*args)))
    for choice in streams[:: max(1, len(streams) // 4)]:
        monkeypatch.setattr(conv, "choose", lambda *_, choice=choice: choice)
        for batch, extra in ((1, True), (41, False)):
            args = arguments(
                "conv_bias_act", Geometry((24, 23), (1, 1)), dtype=getattr(torch, kind),
                channels=(channels, out), batch=batch, extra=extra, norm=NORMS[batch % 3],
            )  # fmt: skip
            check("conv_bias_act", on_gpu(args))
    assert len(calls) >= 2


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("op", OPS)
def test_activations(op: str, act: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        check(op, on_gpu(arguments(op, dtype=dtype, act=act, bias_dtype=torch.float32)))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("op", OPS)
def test_norms(op: str, norm: str, bias: bool, dtype: torch.dtype) -> None:
    """Vectors in float32 and in the weight's dtype, for one image, whose sums are split, and 32."""
    geometry = Geometry((12, 12), (3, 3) if op in WINDOWED else (1, 1), (1, 1), ())
    for batch, vectors in ((1, None), (1, torch.float32), (32, None)):
        args = arguments(
            op, geometry, dtype=dtype, channels=(160, 96), batch=batch,
            norm=norm, bias=bias, bias_dtype=vectors,
        )  # fmt: skip
        if not bias:
            args |= {name: None for name in args if name.endswith("bias")}
        check(op, on_gpu(args))


@pytest.mark.parametrize("variance", [0.0, 1e-8, 1e8])
@pytest.mark.parametrize("op", OPS)
def test_variances_far_from_1(op: str, variance: float) -> None:
    """Each convolution's own eps decides beside the small ones."""
    args = on_gpu(arguments(op, SMALL, channels=(24, 96)))
    for name in args:
        if name.endswith("norm"):
            args[name][1].fill_(variance)
    check(op, args)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_layouts_and_odd_addresses(op: str, layout: str) -> None:
    args = on_gpu(arguments(op, dtype=torch.bfloat16, layout=layout))
    check(op, args)
    shifted = args["x"].new_empty(args["x"].numel() + 1)[1:].view_as(args["x"].contiguous())
    check(op, args | {"x": shifted.copy_(args["x"])})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("op", OPS)
def test_nan_and_infinity_come_out_where_pytorch_has_them(op: str, bad: float) -> None:
    args = on_gpu(arguments(op, Geometry((9, 9), (3, 3), (1, 1), (1, 1, 1, 1))))
    args["x"][0, 3, 4, 4] = bad
    for found, eager in zip(run(op, args), plain(op, args), strict=True):
        assert torch.equal(found.isnan(), eager.isnan())


@pytest.mark.parametrize("op", OPS)
def test_same_bits_every_time(op: str) -> None:
    args = on_gpu(arguments(op, GEOMETRIES["3x3"], dtype=torch.bfloat16, channels=(160, 96)))
    first = run(op, args)
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(first, run(op, args), strict=True))


@pytest.mark.parametrize("op", OPS)
def test_side_stream(op: str) -> None:
    """The launch is on the current stream: it must see what that stream wrote just before."""
    args = on_gpu(arguments(op, dtype=torch.float16))
    expected, source = check(op, args), args["x"].clone()
    args["x"].zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        args["x"].copy_(source)
        found = run(op, args)
        torch.cuda.current_stream().synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_graph_capture(op: str) -> None:
    args = on_gpu(arguments(op, dtype=torch.bfloat16))
    run(op, args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(op, args)
    args["x"].copy_(torch.randn_like(args["x"]))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, run(op, args), strict=True))


@pytest.mark.parametrize("op", OPS)
def test_the_short_path_gives_the_same(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two launches the second goes past Triton's launcher."""
    monkeypatch.setattr(_launch, "_COMPILED", {})
    args = on_gpu(arguments(op, dtype=torch.bfloat16))
    first = run(op, args)
    assert _launch._COMPILED
    assert all(torch.equal(a, b) for a, b in zip(first, check(op, args), strict=True))


@pytest.mark.parametrize("op", OPS)
def test_a_device_that_is_not_the_current_one(op: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    with torch.cuda.device(0):
        check(op, on_gpu(arguments(op, dtype=torch.float16), "cuda:1"))


@pytest.mark.parametrize("op", OPS)
def test_elements_counted_in_64_bits(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = on_gpu(arguments(op, dtype=torch.bfloat16))
    narrow = run(op, args)
    monkeypatch.setattr(_arguments, "MOST_ELEMENTS", 0)
    assert all(torch.equal(a, b) for a, b in zip(check(op, args), narrow, strict=True))


def test_maps_of_more_than_two_to_the_31_elements() -> None:
    """The last image of a batch is computed as it is alone."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    side, channels = 1024, 24
    images = (1 << 31) // (side * side * channels) + 1
    args = on_gpu(arguments("conv_bias_act", SMALL, dtype=torch.bfloat16, channels=(24, 24)))
    x = torch.empty((images, side, side, channels), dtype=torch.bfloat16, device="cuda")
    x = x.permute(0, 3, 1, 2).normal_()
    args |= {"x": x, "residual": None}
    whole = run("conv_bias_act", args)[0]
    alone = run("conv_bias_act", args | {"x": x[-1:]})[0]
    assert torch.equal(whole[-1:], alone)
