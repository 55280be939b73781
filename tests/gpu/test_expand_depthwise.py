"""The native expand_depthwise on the device against float64, by DESIGN section 6."""

from __future__ import annotations

import pytest
import torch

from effv2_kernels.launch.native import expand_depthwise
from effv2_kernels.launch.targets import of_device
from tests.gpu import checks
from tests.ops.cases import ACTS, Geometry

pytestmark = checks.marks()
OP = "expand_depthwise"
DTYPES = (torch.float16, torch.bfloat16)
GEOMETRIES = [
    Geometry((size, size + extra), (k, k), (s, s), padding)
    for size, extra in ((1, 0), (7, 0), (19, 0), (38, 37))
    for k in (3, 5)
    for s in (1, 2)
    for padding in ((), (k // 2,) * 4)
]
SMALL = Geometry((24, 24), (3, 3), (1, 1), (1, 1, 1, 1))


@pytest.fixture(params=["fused", "as chosen"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The fused kernel whatever would be faster, or what the launch choice says."""
    if request.param == "fused":

        def choose(problem: expand_depthwise.Problem, target: object) -> object:
            found = expand_depthwise.fused(problem, of_device(torch.device("cuda")))
            return found and found[1]

        monkeypatch.setattr(expand_depthwise, "choose", choose)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_windows(form: str, geometry: Geometry, dtype: torch.dtype) -> None:
    checks.check(OP, geometry, dtype=dtype, batch=3, channels=(24, 136))


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=str)
@pytest.mark.parametrize("channels", [(7, 20), (16, 64), (160, 960), (72, 104)], ids=str)
def test_channels(form: str, channels: tuple[int, int], dtype: torch.dtype) -> None:
    checks.check(OP, SMALL, dtype=dtype, channels=channels, bias_dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTS)
def test_activations(form: str, act: str, dtype: torch.dtype) -> None:
    checks.check(OP, SMALL, dtype=dtype, act=act, channels=(40, 160))


@pytest.mark.parametrize("tile", [(24, 24, 6, 32, 1), (7, 5, 3, 64, 2), (3, 24, 1, 32, 5)], ids=str)
def test_layouts(monkeypatch: pytest.MonkeyPatch, tile: tuple[int, ...]) -> None:
    layout = expand_depthwise.ExpandDepthwiseLaunch(*tile)
    monkeypatch.setattr(expand_depthwise, "choose", lambda *args: layout)
    checks.check(OP, SMALL, dtype=torch.bfloat16, batch=2, channels=(32, 136))


def test_same_bits_every_time(form: str) -> None:
    checks.same_bits(OP, SMALL, dtype=torch.bfloat16, batch=5, channels=(64, 256))


def test_side_stream(form: str) -> None:
    checks.on_a_side_stream(OP, SMALL, dtype=torch.bfloat16, channels=(64, 256))


def test_graph_capture(form: str) -> None:
    checks.captured(OP, SMALL, dtype=torch.bfloat16, batch=5, channels=(64, 256))


def test_the_kernel_that_was_asked_for() -> None:
    whole = Geometry((7, 7), (3, 3), (1, 1), (1, 1, 1, 1))
    problem = expand_depthwise.Problem(8, 32, 128, (7, 7), (7, 7), 3, 1, torch.bfloat16)
    chosen = expand_depthwise.choose(problem, of_device(torch.device("cuda")))
    names = checks.kernels_of(OP, whole, dtype=torch.bfloat16, batch=8, channels=(32, 128))
    assert ("expand_depthwise_kernel" in names[0]) == (chosen is not None)
