"""The real csrc/depthwise.cu on the CPU against float64, by DESIGN section 6."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from effv2_kernels.launch import depthwise
from effv2_kernels.launch.targets import KNOWN
from tests.cuda_host.runner import ACTS, DTYPES, HERE, Driver, driver
from tests.ops.cases import Geometry, arguments, mapped, plain
from tests.support import assert_as_close_as_pytorch

TARGETS = {"sm_80": KNOWN["sm_80"], "sm_90a": KNOWN["sm_90a"]}
GEOMETRIES = {
    "3x3": Geometry((19, 19), (3, 3), (1, 1), (1, 1, 1, 1)),
    "3x3 of one pixel": Geometry((1, 1), (3, 3), (1, 1), (1, 1, 1, 1)),
    "3x3 valid": Geometry((7, 7), (3, 3)),
    "3x3 stride 2": Geometry((7, 7), (3, 3), (2, 2), (1, 1, 1, 1)),
    "3x3 stride 2 SAME": Geometry((38, 75), (3, 3), (2, 2), ()),
    "3x3 four sides": Geometry((5, 6), (3, 3), (1, 1), (0, 2, 3, 1)),
    "5x5": Geometry((7, 7), (5, 5), (1, 1), (2, 2, 2, 2)),
    "5x5 SAME": Geometry((38, 11), (5, 5), (1, 1), ()),
    "5x5 stride 2 SAME": Geometry((19, 38), (5, 5), (2, 2), ()),
    "7x7 of one pixel SAME": Geometry((1, 1), (7, 7), (2, 2), ()),
    "7x7": Geometry((19, 7), (7, 7), (1, 1), (3, 3, 3, 3)),
    "7x7 stride 2": Geometry((19, 19), (7, 7), (2, 2), (3, 3, 3, 3)),
}
CONVOLVED = ("none", "silu", "relu", "relu6", "hardswish", "gelu")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return driver(tmp_path_factory, HERE / "drivers" / "depthwise.cpp")


def check(
    kernel: Driver,
    geometry: Geometry,
    *,
    dtype: torch.dtype = torch.bfloat16,
    channels: int = 24,
    batch: int = 1,
    act: str = "silu",
    squeeze: bool = True,
    bias_dtype: torch.dtype | None = torch.float32,
    target: str = "sm_90a",
    launch: depthwise.DepthwiseLaunch | None = None,
    offset: int = 0,
    seed: int = 0,
    **limits: Any,
) -> list[torch.Tensor]:
    """Runs the kernel as launch/ would, checks its outputs and returns them."""
    args = arguments(
        "depthwise_bias_act",
        geometry,
        dtype=dtype,
        layout="channels_last",
        batch=batch,
        channels=(channels, 0),
        act=act,
        extra=squeeze,
        bias_dtype=bias_dtype,
        seed=seed,
    )
    size, stride = geometry.out(), geometry.stride[0]
    window = geometry.kernel[0]
    if launch is None:
        shape = (batch, channels, size, window, stride, dtype, squeeze)
        launch = depthwise.choose(*shape, TARGETS[target])
    sides = geometry.sides()
    integers = [
        *(DTYPES[dtype], int(args["bias"].dtype == torch.float32), ACTS.index(act)),
        *(batch, channels, *geometry.size, *size, window, stride, sides[0], sides[2]),
        *launch.integers(),
    ]
    y = torch.empty((batch, channels, *size), dtype=dtype, memory_format=torch.channels_last)
    pooled = torch.full((batch, channels), torch.nan, dtype=dtype) if squeeze else None
    inputs = [args[name] for name in ("x", "weight", "bias")]
    buffers = [*inputs, y.fill_(torch.nan), pooled]
    limits = {"clusters": target == "sm_90a", **limits}
    found, _ = kernel(integers, buffers, offset=offset, **limits)
    for before, after in zip(inputs, found[:3], strict=True):
        assert torch.equal(before, after), "an input changed"
    args["x"] = args["x"].contiguous()
    reference = plain("depthwise_bias_act", mapped(args, torch.Tensor.double))
    eager = plain("depthwise_bias_act", args)
    outputs = [tensor for tensor in found[3:] if tensor is not None]
    for output, theirs, right in zip(outputs, eager, reference, strict=False):
        assert_as_close_as_pytorch(output, theirs, right)
    return outputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_windows(kernel: Driver, geometry: Geometry, dtype: torch.dtype) -> None:
    seed = list(GEOMETRIES.values()).index(geometry)
    check(kernel, geometry, dtype=dtype, batch=1 + seed % 2, squeeze=seed % 3 > 0, seed=seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 7, 12, 72, 136])
@pytest.mark.parametrize("name", ["3x3 stride 2", "5x5", "7x7 of one pixel SAME"])
def test_channels(kernel: Driver, name: str, channels: int, dtype: torch.dtype) -> None:
    """Odd ones, ones that fill half a vector, and ones that do not fill the last block."""
    check(kernel, GEOMETRIES[name], dtype=dtype, channels=channels, batch=3, seed=channels)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", CONVOLVED)
def test_activations(kernel: Driver, act: str, dtype: torch.dtype) -> None:
    check(kernel, GEOMETRIES["3x3 valid"], dtype=dtype, act=act, bias_dtype=dtype)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["3x3", "5x5 stride 2 SAME"])
def test_blocks_that_share_an_image(kernel: Driver, name: str, parts: int, target: str) -> None:
    """As a cluster or by a second launch, several rounds each or with nothing left to do."""
    launch = depthwise.DepthwiseLaunch(8, 4, 3, parts, True)
    check(kernel, GEOMETRIES[name], channels=72, batch=2, target=target, launch=launch)


@pytest.mark.parametrize("rows", [1, 2, 5, 19])
def test_lengths_of_a_strip(kernel: Driver, rows: int) -> None:
    launch = depthwise.DepthwiseLaunch(4, 8, rows, 1, False)
    for name in ("3x3", "7x7", "7x7 stride 2"):
        check(kernel, GEOMETRIES[name], launch=launch)


@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_pointers(kernel: Driver, dtype: torch.dtype, offset: int) -> None:
    check(kernel, GEOMETRIES["3x3 stride 2"], dtype=dtype, offset=offset)


def test_same_bits_every_time(kernel: Driver) -> None:
    for _ in range(2):
        first, second = (check(kernel, GEOMETRIES["3x3"], batch=2, seed=5) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nan_stays_in_its_channel_and_window(kernel: Driver) -> None:
    """Nothing that is not asked for reaches an output: not a neighbour's channel, not padding."""
    geometry = GEOMETRIES["3x3 valid"]
    args = arguments("depthwise_bias_act", geometry, layout="channels_last", channels=(8, 0))
    launch = depthwise.choose(2, 8, (5, 5), 3, 1, torch.float32, False, TARGETS["sm_90a"])
    args["x"][0, 3, 2, 2] = torch.nan
    y = torch.full((2, 8, 5, 5), 7.0).contiguous(memory_format=torch.channels_last)
    integers = [0, 1, ACTS.index("relu6"), 2, 8, 7, 7, 5, 5, 3, 1, 0, 0, *launch.integers()]
    (*_, y, _), _ = kernel(integers, [args["x"], args["weight"], args["bias"], y, None])
    expected = torch.zeros(2, 8, 5, 5, dtype=torch.bool)
    expected[0, 3, 0:3, 0:3] = True
    assert torch.equal(y.isnan(), expected)
