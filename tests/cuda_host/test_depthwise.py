"""The real csrc/depthwise.cu on the CPU against float64, by DESIGN section 6."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from effv2_kernels.engines import native as cuda
from tests.cuda_host.checks import check, check_of
from tests.cuda_host.native import Native
from tests.cuda_host.runner import DTYPES
from tests.ops.cases import NORMS, Geometry, arguments, mapped, ordered

TARGETS = ("sm_80", "sm_90a")
GEOMETRIES = {
    "3x3": Geometry((19, 19), (3, 3), (1, 1), (1, 1, 1, 1)),
    "3x3 of one pixel": Geometry((1, 1), (3, 3), (1, 1), (1, 1, 1, 1)),
    "3x3 valid": Geometry((7, 7), (3, 3)),
    "3x3 stride 2": Geometry((7, 7), (3, 3), (2, 2), (1, 1, 1, 1)),
    "3x3 stride 2 SAME": Geometry((38, 75), (3, 3), (2, 2), ()),
    "3x3 four sides": Geometry((5, 6), (3, 3), (1, 1), (0, 2, 3, 1)),
    "3x3 in much padding": Geometry((3, 3), (3, 3), (1, 1), (5, 4, 1, 6)),
    "5x5": Geometry((7, 7), (5, 5), (1, 1), (2, 2, 2, 2)),
    "5x5 SAME": Geometry((38, 11), (5, 5), (1, 1), ()),
    "5x5 stride 2 SAME": Geometry((19, 38), (5, 5), (2, 2), ()),
    "7x7 of one pixel SAME": Geometry((1, 1), (7, 7), (2, 2), ()),
    "7x7": Geometry((19, 7), (7, 7), (1, 1), (3, 3, 3, 3)),
    "7x7 stride 2": Geometry((19, 19), (7, 7), (2, 2), (3, 3, 3, 3)),
}
CONVOLVED = ("none", "silu", "relu", "relu6", "hardswish", "gelu")


def checked(native: Native, geometry: Geometry, **options: Any) -> list[torch.Tensor]:
    options = {"channels": (24, 0), "dtype": torch.bfloat16, "batch": 1, **options}
    found = check(cuda.depthwise_bias_act, "depthwise_bias_act", geometry, **options)
    assert native.calls == ["depthwise"]
    native.calls.clear()
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_windows(native: Native, geometry: Geometry, dtype: torch.dtype) -> None:
    seed = list(GEOMETRIES.values()).index(geometry)
    checked(native, geometry, dtype=dtype, batch=1 + seed % 2, extra=seed % 3 > 0, seed=seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 7, 12, 72, 136])
@pytest.mark.parametrize("name", ["3x3 stride 2", "5x5", "7x7 of one pixel SAME"])
def test_channels(native: Native, name: str, channels: int, dtype: torch.dtype) -> None:
    """Odd ones, ones that fill half a vector, and ones that do not fill the last block."""
    checked(native, GEOMETRIES[name], dtype=dtype, channels=(channels, 0), batch=3, seed=channels)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", CONVOLVED)
def test_activations(native: Native, act: str, dtype: torch.dtype) -> None:
    bias_dtype = torch.float32 if act == "silu" else dtype
    checked(native, GEOMETRIES["3x3 valid"], dtype=dtype, act=act, bias_dtype=bias_dtype)


@pytest.mark.parametrize("native", TARGETS, indirect=True)
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["3x3", "5x5 stride 2 SAME"])
def test_blocks_that_share_an_image(native: Native, name: str, parts: int) -> None:
    """As a cluster or by a second launch, several rounds each or with nothing left to do."""
    native.launch = [8, 4, 3, parts, 1]
    checked(native, GEOMETRIES[name], channels=(72, 0), batch=2)


@pytest.mark.parametrize("rows", [1, 2, 5, 19])
def test_lengths_of_a_strip(native: Native, rows: int) -> None:
    native.launch = [4, 8, rows, 1, 0]
    for name in ("3x3", "7x7", "7x7 stride 2"):
        checked(native, GEOMETRIES[name])


@pytest.mark.parametrize("threads", [(16, 6), (8, 12), (4, 3), (16, 1)], ids=str)
@pytest.mark.parametrize("name", ["3x3", "3x3 stride 2 SAME", "5x5 SAME"])
def test_shapes_of_a_block(native: Native, name: str, threads: tuple[int, int]) -> None:
    """Warps whose lanes have strips of other lengths, or none; half warps are filled up."""
    native.launch = [*threads, 4, 2, 0]
    checked(native, GEOMETRIES[name], channels=(72, 0))


@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_pointers(native: Native, dtype: torch.dtype, offset: int) -> None:
    native.offset = offset
    checked(native, GEOMETRIES["3x3 stride 2"], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vectors", [None, torch.float32], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_norms(native: Native, norm: str, bias: bool, vectors: Any, dtype: torch.dtype) -> None:
    """By vectors of channels, whose norm need not be aligned, and by single channels."""
    native.vector_offset = 1
    options = {"norm": norm, "bias": bias, "bias_dtype": vectors, "dtype": dtype}
    for channels in (24, 7):
        checked(native, GEOMETRIES["3x3 stride 2"], channels=(channels, 0), **options)
    checked(native, GEOMETRIES["5x5"], act="relu", **options)


def test_a_bias_of_another_dtype_than_the_norm(native: Native) -> None:
    op, options = "depthwise_bias_act", {"layout": "channels_last", "dtype": torch.bfloat16}
    for change, dtype in (("bias", torch.bfloat16), ("norm", torch.float32)):
        args = arguments(op, GEOMETRIES["3x3"], channels=(24, 0), bias_dtype=dtype, **options)
        args |= mapped({change: args[change]}, torch.Tensor.float)
        check_of(cuda.depthwise_bias_act, op, args)


@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
def test_layouts_of_the_input(native: Native, layout: str) -> None:
    checked(native, GEOMETRIES["3x3 four sides"], layout=layout)


def test_same_bits_every_time(native: Native) -> None:
    first, second = (checked(native, GEOMETRIES["3x3"], batch=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nan_stays_in_its_channel_and_window(native: Native) -> None:
    """Nothing that is not asked for reaches an output: not a neighbour's channel, not padding."""
    args = arguments("depthwise_bias_act", GEOMETRIES["3x3 valid"], channels=(8, 0))
    args["x"][0, 3, 2, 2] = torch.nan
    inputs = ordered("depthwise_bias_act", args)[:5]
    y, _ = cuda.depthwise_bias_act(*inputs, (1, 1), (0, 0, 0, 0), "relu6", False)
    expected = torch.zeros(2, 8, 5, 5, dtype=torch.bool)
    expected[0, 3, 0:3, 0:3] = True
    assert torch.equal(y.isnan(), expected)


def test_outputs_that_do_not_exist_are_not_in_the_mean(native: Native) -> None:
    """A strip is wider than what is left of a row: what it computes there is nobody's."""
    args = arguments("depthwise_bias_act", Geometry((8, 8), (3, 3), (2, 2)), channels=(8, 0))
    args["x"][:, :, :, 7] = torch.nan
    args["x"][:, :, 7] = torch.nan
    inputs = ordered("depthwise_bias_act", args)[:5]
    y, pooled = cuda.depthwise_bias_act(*inputs, (2, 2), (0, 0, 0, 0), "silu", True)
    assert y.shape[2:] == (3, 3) and y.isfinite().all() and pooled.isfinite().all()
