"""The native depthwise_bias_act on the device against float64, by DESIGN section 6."""

from __future__ import annotations

import pytest
import torch

from effv2_kernels.launch.native import depthwise
from effv2_kernels.launch.native.depthwise import DepthwiseLaunch
from tests.gpu import checks
from tests.ops.cases import ACTS, Geometry

pytestmark = checks.marks()
OP = "depthwise_bias_act"
SAME = ()
GEOMETRIES = [
    Geometry((size, size + extra), (k, k), (s, s), padding)
    for size, extra in ((1, 0), (7, 0), (19, 0), (38, 37))
    for k in (3, 5, 7)
    for s in (1, 2)
    for padding in (SAME, (k // 2,) * 4)
]
SMALL = Geometry((24, 24), (3, 3), (1, 1), (1, 1, 1, 1))


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_windows(geometry: Geometry, dtype: torch.dtype) -> None:
    for batch, channels in ((1, 136), (3, 7)):
        checks.check(OP, geometry, dtype=dtype, batch=batch, channels=(channels, 0))


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTS)
def test_activations(act: str, dtype: torch.dtype) -> None:
    checks.check(OP, SMALL, dtype=dtype, act=act, channels=(96, 0), bias_dtype=torch.float32)


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8, 20])
@pytest.mark.parametrize("cluster", [False, True])
def test_blocks_that_share_an_image(monkeypatch, parts: int, cluster: bool) -> None:
    layout = DepthwiseLaunch(8, 16, 3, parts, cluster)
    monkeypatch.setattr(depthwise, "choose", lambda *args: layout)
    checks.check(OP, SMALL, dtype=torch.bfloat16, batch=3, channels=(960, 0))


@pytest.mark.parametrize("n", [1, 128])
def test_shapes_of_v2_s(n: int) -> None:
    for channels, size in ((256, 24), (960, 24), (1536, 12)):
        geometry = Geometry((size, size), (3, 3), (1, 1), (1, 1, 1, 1))
        checks.check(OP, geometry, dtype=torch.bfloat16, batch=n, channels=(channels, 0))


@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
def test_layouts_of_the_input(layout: str) -> None:
    checks.check(OP, SMALL, dtype=torch.float16, layout=layout, channels=(40, 0))


@pytest.mark.parametrize("n", [1, 40])
def test_same_bits_every_time(n: int) -> None:
    checks.same_bits(OP, SMALL, dtype=torch.bfloat16, batch=n, channels=(960, 0))


def test_side_stream() -> None:
    checks.on_a_side_stream(OP, SMALL, dtype=torch.bfloat16, channels=(960, 0))


@pytest.mark.parametrize("n", [1, 40])
def test_graph_capture(n: int) -> None:
    checks.captured(OP, SMALL, dtype=torch.bfloat16, batch=n, channels=(960, 0))


def test_one_launch_for_many_images() -> None:
    names = checks.kernels_of(OP, SMALL, dtype=torch.bfloat16, batch=64, channels=(960, 0))
    assert len(names) == 1 and "depthwise_kernel" in names[0]


def test_beyond_2_31_elements() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("40 GB of memory are needed")
    n, channels, side = 2100, 1024, 32  # 2.2e9 elements
    x = torch.zeros((n, channels, side, side), dtype=torch.bfloat16, device="cuda")
    x = x.contiguous(memory_format=torch.channels_last)
    x[-1] = torch.randn(channels, side, side)
    weight = torch.randn(channels, 1, 3, 3, dtype=torch.bfloat16, device="cuda")
    bias = torch.zeros(channels, device="cuda")
    y, pooled = torch.ops.effv2.depthwise_bias_act(
        x, weight, bias, [], 0.0, [1, 1], [1, 1, 1, 1], "silu", True
    )
    alone = torch.ops.effv2.depthwise_bias_act(
        x[-1:], weight, bias, [], 0.0, [1, 1], [1, 1, 1, 1], "silu", True
    )
    assert torch.equal(y[-1:], alone[0]) and torch.allclose(pooled[-1:], alone[1], rtol=0.02)
    assert not y[:-1].any() and not pooled[:-1].any()


def test_a_device_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    from tests.ops.cases import arguments

    here = arguments(OP, SMALL, layout="channels_last", channels=(40, 0))
    expected = checks.launch(OP, checks.on_device(here))
    with torch.cuda.device(0):
        found = checks.launch(OP, checks.on_device(here, "cuda:1"))
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))
