"""The real csrc/stem.cu on the CPU against float64, by DESIGN section 6."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from effv2_kernels.engines import native as cuda
from tests.cuda_host.checks import check, check_of
from tests.cuda_host.native import Native
from tests.cuda_host.runner import DTYPES
from tests.ops.cases import NORMS, Geometry, arguments, mapped, ordered, plain
from tests.support import assert_as_close_as_pytorch

GEOMETRIES = {
    "one pixel": Geometry((1, 1), (3, 3), (2, 2), (1, 1, 1, 1)),
    "7x7": Geometry((7, 7), (3, 3), (2, 2), (1, 1, 1, 1)),
    "7x7 SAME": Geometry((7, 7), (3, 3), (2, 2), ()),
    "aligned lines": Geometry((20, 136), (3, 3), (2, 2), (1, 1, 1, 1)),
    "aligned lines SAME": Geometry((18, 80), (3, 3), (2, 2), ()),
    "38x75 SAME": Geometry((38, 75), (3, 3), (2, 2), ()),
    "valid": Geometry((9, 68), (3, 3), (2, 2)),
    "wide padding": Geometry((3, 8), (3, 3), (2, 2), (4, 0, 5, 21)),
}


def checked(native: Native, geometry: Geometry, **options: Any) -> None:
    check(cuda.stem, "stem", geometry, **{"batch": 1, "channels": (3, 24), **options})
    assert native.calls == ["stem"]
    native.calls.clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_windows(native: Native, name: str, layout: str, dtype: torch.dtype) -> None:
    seed = list(GEOMETRIES).index(name)
    options = {"layout": layout, "dtype": dtype, "batch": 1 + seed % 3, "seed": seed}
    checked(native, GEOMETRIES[name], **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 20, 32, 67])
def test_channels(native: Native, channels: int, dtype: torch.dtype) -> None:
    options = {"channels": (3, channels), "dtype": dtype, "bias_dtype": torch.float32}
    checked(native, GEOMETRIES["7x7 SAME"], layout="contiguous", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [24, 32, 20])
def test_a_block_walks_over_tiles(
    native: Native, channels: int, layout: str, dtype: torch.dtype
) -> None:
    """From tile to tile of a row, to the next row and to the next image, the last walk shorter."""
    native.multiprocessors = 1
    options = {"channels": (3, channels), "layout": layout, "dtype": dtype, "batch": 3}
    checked(native, GEOMETRIES["38x75 SAME"], **options)
    checked(native, Geometry((36, 144), (3, 3), (2, 2), (1, 1, 1, 1)), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [248, 256])
def test_most_channels(native: Native, channels: int, dtype: torch.dtype) -> None:
    checked(native, GEOMETRIES["7x7"], channels=(3, channels), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("left", [0, 1, 2, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_windows(
    native: Native, value: float, left: int, layout: str, dtype: torch.dtype
) -> None:
    geometry = Geometry((24, 80), (3, 3), (2, 2), (1, 1, left, 1))
    options = {"channels": (3, 24), "layout": layout, "dtype": dtype, "act": "none", "batch": 1}
    for width_step, channel in ((7, 0), (8, 1), (9, 2)):
        args = arguments("stem", geometry, **options)
        args["x"][0, channel, ::5, ::width_step] = value
        spoilt = (~args["x"].isfinite()).double()
        reached = F.conv2d(
            F.pad(spoilt, (left, 1, 1, 1)), torch.ones(24, 3, 3, 3, dtype=torch.double), stride=2
        )
        assert 0 < reached.count_nonzero() < reached.numel()
        found = cuda.stem(*ordered("stem", args))
        assert torch.equal(found.isfinite(), reached == 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vectors", [None, torch.float32], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_norms(native: Native, norm: str, bias: bool, vectors: Any, dtype: torch.dtype) -> None:
    native.vector_offset = 1
    options = {"norm": norm, "bias": bias, "bias_dtype": vectors, "dtype": dtype}
    checked(native, GEOMETRIES["7x7"], **options)


def test_a_bias_of_another_dtype_than_the_norm(native: Native) -> None:
    options = {"channels": (3, 20), "layout": "channels_last", "dtype": torch.bfloat16}
    for change, dtype in (("bias", torch.bfloat16), ("norm", torch.float32)):
        args = arguments("stem", GEOMETRIES["7x7"], bias_dtype=dtype, **options)
        args |= mapped({change: args[change]}, torch.Tensor.float)
        check_of(cuda.stem, "stem", args)


@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_casts_the_image(native: Native, x_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """The result is at least as close as that of an image which was rounded first."""
    for layout in ("contiguous", "channels_last"):
        args = arguments("stem", GEOMETRIES["aligned lines"], dtype=dtype, channels=(3, 24))
        args["x"] = args["x"].to(x_dtype)
        if layout == "channels_last":
            args["x"] = args["x"].contiguous(memory_format=torch.channels_last)
        wide = mapped(args, torch.Tensor.double)
        found = cuda.stem(*ordered("stem", args))
        assert found.dtype == dtype
        assert_as_close_as_pytorch(found, plain("stem", args)[0], plain("stem", wide)[0])


@pytest.mark.parametrize("act", ["none", "silu", "relu", "relu6", "hardswish", "gelu"])
def test_activations(native: Native, act: str) -> None:
    for dtype in DTYPES:
        checked(native, GEOMETRIES["7x7"], act=act, dtype=dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_unaligned_pointers(native: Native, layout: str) -> None:
    for native.offset in (1, 4):
        for dtype in DTYPES:
            checked(native, GEOMETRIES["aligned lines"], layout=layout, dtype=dtype)


def test_other_strides_are_copied(native: Native) -> None:
    checked(native, GEOMETRIES["7x7"], layout="sliced")
