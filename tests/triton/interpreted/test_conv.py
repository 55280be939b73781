"""``conv_bias_act``, ``gated_project`` and ``stem`` on Triton."""

from __future__ import annotations

import pytest
import torch

from effv2_kernels.engines.triton import _arguments
from effv2_kernels.launch.triton.conv import Choice
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
from tests.support import relative_error
from tests.triton.interpreted.check import DTYPES, check, run, vectors

SMALL_TILES = Choice(block_m=32, block_n=16, block_k=32, split_k=1, warps=4, stages=2)
CHANNELS = ((3, 20), (7, 33), (24, 24), (40, 5), (12, 17))
# All windows there are, but large maps cut: a tile of pixels has 32.
WINDOWS = {
    name: Geometry(tuple(min(n, 9) for n in g.size), g.kernel, g.stride, g.padding)
    for name, g in GEOMETRIES.items()
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str, dtype: torch.dtype, tiles) -> None:
    """Both paddings, every stride, channels that are no power of two, with a residual and not."""
    seed = list(WINDOWS).index(name)
    tiles("conv", SMALL_TILES)
    for extra in (False, True) if dtype == torch.float32 else (True,):
        args = arguments(
            "conv_bias_act",
            WINDOWS[name],
            dtype=dtype,
            channels=CHANNELS[seed % len(CHANNELS)],
            batch=1 + seed % 3,
            extra=extra,
            seed=seed,
            **vectors(seed),
        )
        check("conv_bias_act", args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_channels(dtype: torch.dtype, tiles) -> None:
    tiles("conv", SMALL_TILES)
    geometry = Geometry((4, 5), (3, 3), (1, 1), (1, 1, 1, 1))
    check("conv_bias_act", arguments("conv_bias_act", geometry, dtype=dtype, channels=(96, 17)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("split", [1, 2, 5])
@pytest.mark.parametrize("channels", [(74, 20), (96, 40), (10, 3)], ids=str)
def test_gate_rows_straddle_images(channels, split: int, dtype: torch.dtype, tiles) -> None:
    """Images of 15 pixels in tiles of 32, with K split and not."""
    tiles("conv", Choice(32, 16, 16, split, 4, 2))
    geometry = Geometry((3, 5), (1, 1))
    for extra in (False, True):
        args = arguments(
            "gated_project",
            geometry,
            dtype=dtype,
            channels=channels,
            batch=3,
            extra=extra,
            **vectors(split + extra),
        )
        check("gated_project", args)


@pytest.mark.parametrize("split", [2, 3, 8])
@pytest.mark.parametrize("kernel", [1, 3])
def test_split_sums(kernel: int, split: int, tiles) -> None:
    """Splits that do not divide K, some of which have nothing to add; the same bits every time."""
    tiles("conv", Choice(32, 32, 32, split, 4, 2))
    pad = kernel // 2
    geometry = Geometry((5, 6), (kernel, kernel), (1, 1), (pad, pad, pad, pad))
    for act in ("none", "silu"):
        more = vectors(split + kernel)
        args = arguments("conv_bias_act", geometry, channels=(70, 20), act=act, **more)
        first, second = check("conv_bias_act", args)[0], run("conv_bias_act", args)[0]
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTS)
def test_activations(act: str, dtype: torch.dtype) -> None:
    for op in ("conv_bias_act", "gated_project"):
        check(op, arguments(op, dtype=dtype, act=act))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("act", ACTS)
def test_nan_and_infinity_come_out_where_pytorch_has_them(act: str, bad: float) -> None:
    args = arguments("conv_bias_act", Geometry((9, 9), (3, 3), (1, 1), (1, 1, 1, 1)), act=act)
    args["x"][0, 3, 4, 4] = bad
    (found,), (eager,) = run("conv_bias_act", args), plain("conv_bias_act", args)
    if act == "gelu":
        # PyTorch has inf or nan for gelu(inf), as its code for vectors runs or not: both are right.
        (before,) = plain("conv_bias_act", args | {"act": "none", "residual": None})
        found, eager = found[~before.isinf()], eager[~before.isinf()]
    assert torch.equal(found.isnan(), eager.isnan())
    assert torch.equal(found.isinf(), eager.isinf())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (5, 7)], ids=["one image", "two images"])
@pytest.mark.parametrize("split", [1, 3])
def test_gate_rows_of_a_tile(size: tuple[int, int], split: int, dtype: torch.dtype, tiles) -> None:
    """Tiles of 32 pixels of images that have as many or more, down to the last image."""
    tiles("conv", Choice(32, 16, 16, split, 4, 2))
    for batch in (1, 3):
        geometry = Geometry(size, (1, 1))
        args = arguments(
            "gated_project", geometry, dtype=dtype, channels=(74, 20), batch=batch, seed=batch
        )
        check("gated_project", args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out", [5, 40, 48, 57])
@pytest.mark.parametrize("op", ["conv_bias_act", "gated_project"])
def test_two_products_of_one_tile(op: str, out: int, dtype: torch.dtype, tiles) -> None:
    """32 + 16 channels a tile: fewer than that, all of it, and more than one tile."""
    tiles("conv", Choice(32, 32, 16, 1, 4, 2, block_r=16))
    geometry = Geometry((5, 7), (3, 3) if op == "conv_bias_act" else (1, 1))
    more = vectors(out)
    check(op, arguments(op, geometry, dtype=dtype, channels=(24, out), batch=2, seed=out, **more))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ["conv_bias_act", "gated_project", "stem"])
def test_layouts(op: str, layout: str) -> None:
    check(op, arguments(op, layout=layout))
    check(op, arguments(op, layout=layout, dtype=torch.float16, bias_dtype=torch.float32))


def test_residual_that_is_the_input_and_one_broadcast_by_strides() -> None:
    args = arguments("conv_bias_act", channels=(20, 20))
    check("conv_bias_act", args | {"residual": args["x"]})
    wide = args["residual"][:, :, :1, :1].expand_as(args["residual"])
    check("conv_bias_act", args | {"residual": wide})


@pytest.mark.parametrize("op", ["conv_bias_act", "gated_project"])
def test_elements_counted_in_64_bits(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(op)
    narrow = run(op, args)[0]
    monkeypatch.setattr(_arguments, "MOST_ELEMENTS", 0)
    assert torch.equal(check(op, args)[0], narrow)


@pytest.mark.parametrize("channels", [(1, 20), (20, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("geometry", [SMALL, GEOMETRIES["1x1 of one pixel"]], ids=["5x6", "1x1"])
def test_one_channel_or_pixel(geometry: Geometry, channels: tuple[int, int]) -> None:
    for op in ("conv_bias_act", "gated_project"):
        check(op, arguments(op, geometry, channels=channels))


def test_stem_casts_the_image() -> None:
    geometry = WINDOWS["3x3 stride 2 SAME"]
    args = arguments("stem", geometry, dtype=torch.float16, channels=(3, 24))
    check("stem", args | {"x": args["x"].float()})


def test_no_images() -> None:
    for op in ("conv_bias_act", "gated_project", "stem"):
        check(op, arguments(op, batch=0))


def test_what_is_declined() -> None:
    for op in ("conv_bias_act", "gated_project", "stem"):
        args = arguments(op, dtype=torch.float64)
        assert engine(op, args, "cpu", by_name=True) == "aten"


def test_a_wrong_kernel_would_be_noticed(tiles) -> None:
    """The rule tells a right result from one whose last step of K is missing."""
    args = arguments("conv_bias_act", channels=(33, 20))
    right = check("conv_bias_act", args)[0]
    args["x"] = args["x"].clone()
    args["x"][:, -1] = 0
    assert relative_error(run("conv_bias_act", args)[0], right) > 1e-3
