"""The real csrc/expand_depthwise.cu on the CPU against float64, by DESIGN section 6."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from effv2_kernels.engines import native as cuda
from effv2_kernels.launch.native import expand_depthwise
from tests.cuda_host.checks import check
from tests.cuda_host.native import Native
from tests.ops.cases import NORMS, Geometry

DTYPES = (torch.float16, torch.bfloat16)
# One tile a map, or several with a ragged last one.
GEOMETRIES = {
    "3x3": (Geometry((7, 7), (3, 3), (1, 1), (1, 1, 1, 1)), [7, 7, 3, 64, 1]),
    "3x3 of one pixel": (Geometry((1, 1), (3, 3), (1, 1), (1, 1, 1, 1)), [1, 1, 1, 32, 1]),
    "3x3 tiles": (Geometry((19, 19), (3, 3), (1, 1), (1, 1, 1, 1)), [7, 8, 3, 32, 2]),
    "3x3 stride 2": (Geometry((19, 19), (3, 3), (2, 2), (1, 1, 1, 1)), [10, 10, 5, 64, 2]),
    "3x3 stride 2 SAME": (Geometry((12, 25), (3, 3), (2, 2), ()), [4, 5, 2, 32, 1]),
    "3x3 valid": (Geometry((9, 6), (3, 3)), [4, 4, 4, 64, 1]),
    "a tile of padding": (Geometry((3, 3), (3, 3), (1, 1), (5, 1, 1, 4)), [2, 3, 1, 32, 1]),
    "5x5": (Geometry((7, 9), (5, 5), (1, 1), (2, 2, 2, 2)), [4, 9, 2, 32, 1]),
    "5x5 stride 2 SAME": (Geometry((14, 11), (5, 5), (2, 2), ()), [7, 3, 4, 64, 2]),
    "5x5 of 64": (Geometry((7, 6), (5, 5), (1, 1), (2, 2, 2, 2)), [4, 3, 4, 64, 1]),
    "5x5 stride 2 of 32": (Geometry((38, 75), (5, 5), (2, 2), ()), [7, 13, 3, 32, 3]),
}


@pytest.fixture(autouse=True)
def fused(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel, whatever would be faster."""

    def choose(problem: expand_depthwise.Problem, target: Any) -> Any:
        found = expand_depthwise.fused(problem, target)
        return found and found[1]

    monkeypatch.setattr(expand_depthwise, "choose", choose)


def checked(native: Native, geometry: Geometry, **options: Any) -> list[torch.Tensor]:
    options = {"channels": (24, 72), "dtype": torch.bfloat16, "batch": 1, **options}
    found = check(cuda.expand_depthwise, "expand_depthwise", geometry, **options)
    assert native.calls == ["expand_depthwise"]
    native.calls.clear()
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_windows(native: Native, name: str, dtype: torch.dtype) -> None:
    geometry, native.launch = GEOMETRIES[name]
    seed = list(GEOMETRIES).index(name)
    checked(native, geometry, dtype=dtype, batch=1 + seed % 3, extra=seed % 4 > 0, seed=seed)


@pytest.mark.parametrize("native", ["sm_80", "sm_90a"], indirect=True)
@pytest.mark.parametrize("name", ["3x3 tiles", "5x5"])
def test_as_launched(native: Native, name: str) -> None:
    checked(native, GEOMETRIES[name][0], channels=(40, 136), bias_dtype=torch.float32)


@pytest.mark.parametrize("channels", [(8, 8), (16, 64), (32, 104), (72, 32)], ids=str)
def test_channels(native: Native, channels: tuple[int, int]) -> None:
    """Depths that fill the last mma or half of it, and chunks with channels that do not exist."""
    for launch in ([7, 4, 3, 64, 1], [7, 7, 7, 32, 2]):
        native.launch = launch
        checked(native, GEOMETRIES["3x3"][0], channels=channels, bias_dtype=torch.float32)


@pytest.mark.parametrize("act", ["none", "silu", "relu", "relu6", "hardswish", "gelu"])
def test_activations(native: Native, act: str) -> None:
    geometry, native.launch = GEOMETRIES["3x3 valid"]
    for dtype in DTYPES:
        checked(native, geometry, act=act, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vectors", [None, torch.float32], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_norms(native: Native, norm: str, bias: bool, vectors: Any, dtype: torch.dtype) -> None:
    """At addresses that are aligned to their elements only, and not by SiLU alone."""
    native.vector_offset = 1
    options = {"norm": norm, "bias": bias, "bias_dtype": vectors, "dtype": dtype}
    for name, act in (("3x3", "silu"), ("5x5 of 64", "relu")):
        geometry, native.launch = GEOMETRIES[name]
        checked(native, geometry, act=act, **options)


def test_padding_is_of_the_expanded_tensor(native: Native) -> None:
    """Outside of the image the expanded tensor is 0, not act(bias)."""
    geometry = GEOMETRIES["3x3"][0]
    x = torch.zeros(1, 8, 7, 7, dtype=torch.bfloat16)
    expand = torch.zeros(8, 8, 1, 1).bfloat16(), torch.full((8,), 3.0), [], 0.0
    depthwise = torch.ones(8, 1, 3, 3).bfloat16(), None, [], 0.0
    native.launch = [3, 3, 3, 32, 1]
    y, _ = cuda.expand_depthwise(
        *(x, *expand, *depthwise, geometry.stride, geometry.padding, "relu", False)
    )
    counts = torch.tensor([2.0, 3, 3, 3, 3, 3, 2])
    assert torch.equal(y[0, 0].float(), 3 * counts[:, None] * counts)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_shared_memory_is_as_the_choice_counts_it(native: Native, name: str) -> None:
    geometry, native.launch = GEOMETRIES[name]
    checked(native, geometry)
    window = geometry.kernel[0], geometry.stride[0], torch.bfloat16
    problem = expand_depthwise.Problem(1, 24, 72, geometry.size, geometry.out(), *window)
    layout = expand_depthwise.ExpandDepthwiseLaunch(*native.launch)
    assert native.answers == [expand_depthwise.shared_bytes(problem, layout)]


def test_layouts_of_the_input(native: Native) -> None:
    for layout in ("contiguous", "sliced"):
        checked(native, GEOMETRIES["3x3"][0], layout=layout)


def test_same_bits_every_time(native: Native) -> None:
    geometry, native.launch = GEOMETRIES["3x3 tiles"]
    first, second = (checked(native, geometry, batch=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
