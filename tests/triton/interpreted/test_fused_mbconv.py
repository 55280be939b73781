"""``fused_mbconv`` on Triton."""

from __future__ import annotations

import pytest
import torch

from effv2_kernels.engines.triton import _arguments, fused_mbconv
from effv2_kernels.launch.triton.fused_mbconv import Choice
from tests.ops.cases import (
    ACTS,
    GEOMETRIES,
    LAYOUTS,
    SMALL,
    Geometry,
    arguments,
    engine,
    plain,
)
from tests.triton.interpreted.check import DTYPES, check, run, vectors

OP = "fused_mbconv"
SMALL_TILES = Choice(block_m=32, block_e=32, block_k=32, warps=4, stages=2)
# Input and expanded channels; the output has the input's (with a residual) or three more.
CHANNELS = ((3, 20), (7, 33), (16, 64), (24, 50), (40, 5))
WINDOWS = {
    name: Geometry(tuple(min(n, 9) for n in g.size), g.kernel, g.stride, g.padding)
    for name, g in GEOMETRIES.items()
    if g.kernel[0] < 7
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str, dtype: torch.dtype, tiles) -> None:
    """Both paddings and strides; chunks that do not divide the expanded channels."""
    tiles(OP, SMALL_TILES)
    seed = list(WINDOWS).index(name)
    for extra in (False, True) if dtype == torch.float32 else (True,):
        args = arguments(
            OP,
            WINDOWS[name],
            dtype=dtype,
            channels=CHANNELS[seed % len(CHANNELS)],
            batch=1 + seed % 3,
            extra=extra,
            seed=seed,
            **vectors(seed),
        )
        check(OP, args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("expanded", [20, 48, 96, 100])
def test_two_products_of_one_tile(expanded: int, dtype: torch.dtype, tiles) -> None:
    """32 + 16 expanded channels a chunk: fewer than the first product's, one chunk, two, more."""
    tiles(OP, Choice(32, 32, 16, 4, 2, block_f=16))
    for extra in (False, True):
        more = vectors(expanded // 4 + extra)
        check(OP, arguments(OP, SMALL, dtype=dtype, channels=(12, expanded), extra=extra, **more))


@pytest.mark.parametrize("channels", [(3, 20), (24, 50), (96, 100)], ids=str)
def test_the_launch_that_is_chosen(channels: tuple[int, int]) -> None:
    for dtype in DTYPES:
        check(OP, arguments(OP, SMALL, dtype=dtype, channels=channels))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTS)
def test_activations(act: str, dtype: torch.dtype, tiles) -> None:
    tiles(OP, SMALL_TILES)
    check(OP, arguments(OP, dtype=dtype, act=act))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("act", ["silu", "relu"])
def test_nan_and_infinity_come_out_where_pytorch_has_them(act: str, bad: float, tiles) -> None:
    """Channels past the last one are computed too, and must bring none of their own."""
    tiles(OP, SMALL_TILES)
    args = arguments(OP, Geometry((9, 9), (3, 3), (1, 1), (1, 1, 1, 1)), act=act)
    args["x"][0, 3, 4, 4] = bad
    (found,), (eager,) = run(OP, args), plain(OP, args)
    assert torch.equal(found.isnan(), eager.isnan()) and torch.equal(found.isinf(), eager.isinf())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    check(OP, arguments(OP, layout=layout))
    check(OP, arguments(OP, layout=layout, dtype=torch.float16, bias_dtype=torch.float32))


def test_two_launches_where_one_cannot_hold_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(OP)
    one = check(OP, args)[0]
    monkeypatch.setattr(fused_mbconv, "choose", lambda *args: None)
    two = check(OP, args)[0]
    assert (one - two).abs().max() < 1e-5


def test_elements_counted_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(OP)
    narrow = run(OP, args)[0]
    monkeypatch.setattr(_arguments, "MOST_ELEMENTS", 0)
    assert torch.equal(check(OP, args)[0], narrow)


def test_no_images_and_what_is_declined() -> None:
    check(OP, arguments(OP, batch=0))
    args = arguments(OP, dtype=torch.float64)
    assert engine(OP, args, "cpu", by_name=True) == "aten"
