"""The real csrc/squeeze_excite_gate.cu, compiled as C++ and run on the CPU against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.cuda_host.runner import ACTS, DTYPES, HERE, Driver, driver
from tests.support import relative_error

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
def gate_driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return driver(tmp_path_factory, HERE / "drivers" / "gate.cpp")


def reference(tensors: list[torch.Tensor], act: str, gate: str) -> torch.Tensor:
    pooled, w1, b1, w2, b2 = tensors
    return FUNCTIONS[gate](F.linear(FUNCTIONS[act](F.linear(pooled, w1, b1)), w2, b2))


def run(
    gate_driver: Driver,
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
    tensors = [torch.randn(size).mul(scale).to(dtype) for size, scale in sizes]
    output = torch.full((n, m), torch.nan, dtype=dtype)
    integers = [0, DTYPES[dtype], ACTS.index(act), ACTS.index(gate), *shape]
    options = {"multiprocessors": multiprocessors, "clusters": clusters, "offset": offset}
    (*inputs, output), _ = gate_driver(integers, [*tensors, output], **options)
    assert all(torch.equal(a, b) for a, b in zip(inputs, tensors, strict=True)), "an input changed"
    want = reference([t.double() for t in tensors], act, gate)
    ours = relative_error(output, want)
    theirs = relative_error(reference(tensors, act, gate), want)
    assert ours <= 2 * theirs + 1e-7, f"{ours:.2e} against PyTorch's {theirs:.2e}"
    return output


def tiling(gate_driver: Driver, *args: int) -> tuple[int, ...]:
    *sizes, multiprocessors, clusters = args
    options = {"multiprocessors": multiprocessors, "clusters": bool(clusters)}
    return tuple(gate_driver([1, *sizes], [], **options)[1])


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
def test_matches_float64(gate_driver, shape, multiprocessors, clusters, expected, dtype) -> None:
    torch.manual_seed(sum(shape))
    element_bytes = dtype.itemsize
    chosen = tiling(gate_driver, *shape, element_bytes, multiprocessors, clusters)
    if dtype != torch.float32:
        assert chosen == expected
    run(gate_driver, shape, dtype, multiprocessors=multiprocessors, clusters=clusters)


@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
@pytest.mark.parametrize("act", ["silu", "relu", "relu6", "hardswish", "gelu", "none"])
def test_activations(gate_driver, act: str, gate: str) -> None:
    torch.manual_seed(1)
    for dtype in DTYPES:
        run(gate_driver, (3, 48, 12), dtype, act, gate)


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_unaligned_pointers(gate_driver, offset: int) -> None:
    torch.manual_seed(offset)
    for dtype in DTYPES:
        run(gate_driver, (2, 64, 16), dtype, offset=offset)


def test_same_bits_every_time(gate_driver) -> None:
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        outputs.append(run(gate_driver, (3, 512, 24), torch.bfloat16))
    assert torch.equal(*outputs)


def test_tiling_fills_the_device(gate_driver) -> None:
    """Launch choices for the shapes of EfficientNetV2 on 132 multiprocessors, bf16."""
    assert tiling(gate_driver, 1, 960, 40, 2, 132, 1) == (1, 8, CLUSTER)
    assert tiling(gate_driver, 32, 1536, 64, 2, 132, 1) == (1, 4, CLUSTER)
    assert tiling(gate_driver, 128, 1536, 64, 2, 132, 1) == (1, 1, SHARED)
    assert tiling(gate_driver, 256, 1536, 64, 2, 132, 1) == (2, 1, SHARED)
    assert tiling(gate_driver, 1024, 3840, 160, 2, 132, 1) == (8, 1, SHARED)
