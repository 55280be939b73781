"""The native stem on the device against float64, by DESIGN section 6."""

from __future__ import annotations

import pytest
import torch

from tests.gpu import checks
from tests.gpu.verdicts import described, judge
from tests.ops.cases import ACTS, Geometry, arguments, mapped, plain

pytestmark = checks.marks()
OP = "stem"
GEOMETRIES = [
    Geometry((size, size + extra), (3, 3), (2, 2), padding)
    for size, extra in ((1, 0), (7, 0), (20, 116), (38, 37), (224, 0))
    for padding in ((), (1, 1, 1, 1))
]
SMALL = GEOMETRIES[-1]


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_windows(geometry: Geometry, layout: str, dtype: torch.dtype) -> None:
    for channels in (24, 20, 64):
        checks.check(OP, geometry, dtype=dtype, layout=layout, batch=3, channels=(3, channels))


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTS)
def test_activations(act: str, dtype: torch.dtype) -> None:
    options = {"dtype": dtype, "act": act, "bias_dtype": torch.float32}
    checks.check(OP, GEOMETRIES[3], channels=(3, 32), **options)


@pytest.mark.parametrize("x_dtype", checks.DTYPES, ids=str)
@pytest.mark.parametrize("dtype", checks.DTYPES, ids=str)
def test_casts_the_image(x_dtype: torch.dtype, dtype: torch.dtype) -> None:
    args = arguments(OP, GEOMETRIES[4], dtype=dtype, channels=(3, 24))
    args["x"] = args["x"].to(x_dtype)
    device = checks.on_device(args)
    (found,) = checks.launch(OP, device)
    assert found.dtype == dtype
    reference = plain(OP, mapped(args, torch.Tensor.double))[0]
    judge(OP, "cuda", described(args), found.cpu(), plain(OP, device)[0].cpu(), reference)


def test_same_bits_every_time() -> None:
    checks.same_bits(OP, SMALL, dtype=torch.bfloat16, channels=(3, 24))


def test_side_stream() -> None:
    checks.on_a_side_stream(OP, SMALL, dtype=torch.bfloat16, channels=(3, 24))


def test_graph_capture() -> None:
    checks.captured(OP, SMALL, dtype=torch.bfloat16, channels=(3, 24))


def test_one_launch() -> None:
    names = checks.kernels_of(OP, SMALL, dtype=torch.bfloat16, channels=(3, 24))
    assert len(names) == 1 and "stem_kernel" in names[0]
