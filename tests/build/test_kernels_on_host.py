"""The real csrc/squeeze_excite_gate.cu, compiled as C++ and run on the CPU against float64.

Blocks, clusters, barriers, shuffles and shared memory are those of `host/host_runtime.h`. Inputs
lie between guards of NaN and the output is filled with NaN, so that a read or a write past an end
shows.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

HOST = Path(__file__).parent / "host"
CSRC = Path(__file__).parents[2] / "csrc"
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
ACTS = ["none", "silu", "relu", "relu6", "hardswish", "gelu", "sigmoid", "hardsigmoid"]
FUNCTIONS = {
    "none": lambda x: x,
    "silu": F.silu,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}
SHARED, CLUSTER, SCRATCH = range(3)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH: the kernels' headers come with it")
    target = tmp_path_factory.mktemp("host") / "gate.so"
    # Thread-local variables need no initialisation at run time, and gcc's call of it would be null.
    host = "-fPIC,-fno-extern-tls-init,-Wno-unknown-pragmas"
    flags = ["-DEFFV2_HOST_RUNTIME", f"-I{HOST}", f"-I{CSRC}", "-Xcompiler", host]
    command = ["nvcc", "-x", "c++", "-std=c++17", "-O1", *flags, "-shared", "-cudart", "none"]
    subprocess.run([*command, str(HOST / "gate.cpp"), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def guarded(values: torch.Tensor, offset: int) -> torch.Tensor:
    """A copy of `values` in a buffer of NaN, `offset` elements past an aligned address."""
    buffer = torch.full((values.numel() + 128,), torch.nan, dtype=values.dtype)
    start = 64 + offset
    view = buffer[start : start + values.numel()].view(values.shape)
    view.copy_(values)
    return view


def guards_hold(view: torch.Tensor) -> bool:
    whole = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
    first = view.storage_offset()
    outside = torch.cat([whole[:first], whole[first + view.numel() :]])
    return bool(outside.isnan().all())


def reference(tensors: list[torch.Tensor], act: str, gate: str) -> torch.Tensor:
    pooled, w1, b1, w2, b2 = tensors
    return FUNCTIONS[gate](F.linear(FUNCTIONS[act](F.linear(pooled, w1, b1)), w2, b2))


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def run(
    library: ctypes.CDLL,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    act: str = "silu",
    gate: str = "sigmoid",
    multiprocessors: int = 132,
    clusters: bool = True,
    offset: int = 0,
) -> torch.Tensor:
    """Runs the kernel on random inputs, checks it by DESIGN section 6 and returns its output."""
    n, m, r = shape
    sizes = [((n, m), 1.0), ((r, m), m**-0.5), ((r,), 1.0), ((m, r), 4 * r**-0.5), ((m,), 1.0)]
    tensors = [guarded(torch.randn(size).mul(scale).to(dtype), offset) for size, scale in sizes]
    output = guarded(torch.full((n, m), torch.nan, dtype=dtype), offset)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in [*tensors, output]]
    longs = [ctypes.c_int64(size) for size in shape]
    codes = [DTYPES[dtype], ACTS.index(act), ACTS.index(gate)]
    assert library.run_gate(*codes, *longs, *pointers, multiprocessors, int(clusters)) == 0
    want = reference([t.double() for t in tensors], act, gate)
    ours = relative_error(output, want)
    theirs = relative_error(reference(tensors, act, gate), want)
    assert ours <= 2 * theirs + 1e-7, f"{ours:.2e} against PyTorch's {theirs:.2e}"
    assert all(guards_hold(t) for t in [*tensors, output])
    return output


def tiling(library: ctypes.CDLL, *args: int) -> tuple[int, int, int]:
    n, m, r, element_bytes, multiprocessors, clusters = args
    sizes = [ctypes.c_int64(value) for value in (n, m, r)]
    packed = library.tiling(*sizes, element_bytes, multiprocessors, clusters)
    return packed // 100, packed // 10 % 10, packed % 10


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "multiprocessors", "clusters", "expected"),
    [
        ((1, 256, 16), 132, True, (1, 1, SHARED)),  # too small to split
        ((1, 1536, 64), 132, True, (1, 8, CLUSTER)),
        ((1, 1536, 64), 132, False, (1, 8, SHARED)),  # before sm_90
        ((3, 1056, 44), 132, True, (1, 8, CLUSTER)),  # rows of r in 8-byte vectors
        ((2, 1021, 37), 132, True, (1, 8, CLUSTER)),  # nothing divides anything
        ((2, 3001, 5), 16, True, (1, 2, CLUSTER)),  # fewer rows than warps
        ((1, 20011, 3), 132, True, (1, 8, CLUSTER)),  # fewer rows than blocks of the cluster
        ((5, 188, 20), 3, True, (2, 1, SHARED)),
        ((5, 96, 24), 2, True, (4, 1, SHARED)),
        ((11, 188, 20), 1, True, (8, 1, SHARED)),  # a last group of 3 images
        ((9, 7, 1), 1, True, (8, 1, SHARED)),
        ((9, 640, 160), 1, True, (8, 1, SHARED)),  # more row groups than warps
        ((4, 40, 3001), 1, True, (2, 1, SHARED)),  # shared memory for two hidden vectors
        ((2, 12, 10501), 4, True, (1, 1, SCRATCH)),  # and for none
    ],
)
def test_matches_float64(library, shape, multiprocessors, clusters, expected, dtype) -> None:
    torch.manual_seed(sum(shape))
    element_bytes = dtype.itemsize
    chosen = tiling(library, *shape, element_bytes, multiprocessors, clusters)
    if dtype != torch.float32:
        assert chosen == expected
    run(library, shape, dtype, multiprocessors=multiprocessors, clusters=clusters)


@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
@pytest.mark.parametrize("act", ["silu", "relu", "relu6", "hardswish", "gelu", "none"])
def test_activations(library, act: str, gate: str) -> None:
    torch.manual_seed(1)
    for dtype in DTYPES:
        run(library, (3, 48, 12), dtype, act, gate)


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_unaligned_pointers(library, offset: int) -> None:
    torch.manual_seed(offset)
    for dtype in DTYPES:
        run(library, (2, 64, 16), dtype, offset=offset)


def test_same_bits_every_time(library) -> None:
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        outputs.append(run(library, (3, 512, 24), torch.bfloat16))
    assert torch.equal(*outputs)


def test_tiling_fills_the_device(library) -> None:
    """Launch choices for the shapes of EfficientNetV2 on 132 multiprocessors, bf16."""
    assert tiling(library, 1, 960, 40, 2, 132, 1) == (1, 8, CLUSTER)
    assert tiling(library, 32, 1536, 64, 2, 132, 1) == (1, 4, CLUSTER)
    assert tiling(library, 128, 1536, 64, 2, 132, 1) == (1, 1, SHARED)
    assert tiling(library, 256, 1536, 64, 2, 132, 1) == (2, 1, SHARED)
    assert tiling(library, 1024, 3840, 160, 2, 132, 1) == (8, 1, SHARED)
