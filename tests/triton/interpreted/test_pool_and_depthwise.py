"""``conv_act_pool``, ``depthwise_bias_act`` and ``expand_depthwise`` on Triton."""

from __future__ import annotations

import pytest
import torch

from effv2_kernels.engines.triton import _arguments
from effv2_kernels.launch.triton import conv_act_pool
from effv2_kernels.launch.triton import depthwise as depthwise_triton
from tests.ops.cases import ACTS, GEOMETRIES, LAYOUTS, Geometry, arguments, engine, plain
from tests.triton.interpreted.check import DTYPES, check, run, vectors

OPS = ("conv_act_pool", "depthwise_bias_act", "expand_depthwise")
POOL = conv_act_pool.Choice(block_m=16, block_n=16, block_k=32, parts=1, warps=4, stages=2)
DEPTHWISE = depthwise_triton.Choice(block_p=16, block_c=32, tiles=2, warps=4)
CHANNELS = ((7, 20), (24, 33), (70, 3))
WINDOWS = {
    name: Geometry(tuple(min(n, 7) for n in g.size), g.kernel, g.stride, g.padding)
    for name, g in GEOMETRIES.items()
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 8)], ids=str)
def test_pool(size: tuple[int, int], parts: int, dtype: torch.dtype, tiles) -> None:
    """One program an image and several, some of which have no pixel to add."""
    tiles("pool", conv_act_pool.Choice(16, 16, 32, parts, 4, 2))
    for channels in CHANNELS:
        geometry, more = Geometry(size, (1, 1)), vectors(parts + channels[1])
        args = arguments("conv_act_pool", geometry, dtype=dtype, channels=channels, **more)
        check("conv_act_pool", args)


@pytest.mark.parametrize("name", WINDOWS)
def test_depthwise_windows(name: str, tiles) -> None:
    """In one of the dtypes each."""
    seed = list(WINDOWS).index(name)
    dtype = DTYPES[seed % 2]
    tiles("depthwise", DEPTHWISE)
    args = arguments(
        "depthwise_bias_act",
        WINDOWS[name],
        dtype=dtype,
        channels=(CHANNELS[seed % 3][1], 1),
        batch=1 + seed % 3,
        extra=seed % 3 > 0,
        seed=seed,
        **vectors(seed // 2),
    )
    check("depthwise_bias_act", args)


@pytest.mark.parametrize("name", ["3x3", "3x3 stride 2 SAME", "5x5"])
def test_expand_depthwise_pads_the_expanded_tensor(name: str) -> None:
    for seed, dtype in enumerate(DTYPES, len(name)):
        args = arguments("expand_depthwise", WINDOWS[name], dtype=dtype, **vectors(seed))
        check("expand_depthwise", args)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("op", OPS)
def test_activations(op: str, act: str) -> None:
    """Each in one of the dtypes: the kernels compute them in float32."""
    check(op, arguments(op, dtype=DTYPES[list(ACTS).index(act) % 2], act=act))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("op", OPS)
def test_nan_and_infinity_come_out_where_pytorch_has_them(op: str, bad: float) -> None:
    args = arguments(op, Geometry((9, 9), (3, 3), (1, 1), (1, 1, 1, 1)))
    args["x"][0, 3, 4, 4] = bad
    for found, eager in zip(run(op, args), plain(op, args), strict=True):
        assert torch.equal(found.isnan(), eager.isnan())
        assert torch.equal(found.isinf(), eager.isinf())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_layouts(op: str, layout: str) -> None:
    check(op, arguments(op, layout=layout))
    check(op, arguments(op, layout=layout, dtype=torch.float16, bias_dtype=torch.float32))


@pytest.mark.parametrize("op", OPS)
def test_same_bits_every_time(op: str, tiles) -> None:
    tiles("pool", conv_act_pool.Choice(16, 16, 32, 3, 4, 2))
    tiles("depthwise", DEPTHWISE)
    args = arguments(op, WINDOWS["3x3"])
    for first, second in zip(run(op, args), run(op, args), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("op", OPS)
def test_elements_counted_in_64_bits(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(op)
    narrow = run(op, args)
    monkeypatch.setattr(_arguments, "MOST_ELEMENTS", 0)
    for first, second in zip(check(op, args), narrow, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("op", OPS[:2])  # the third is the second and a convolution
def test_what_is_declined(op: str) -> None:
    for args in (arguments(op, dtype=torch.float64), arguments(op, batch=0)):
        assert engine(op, args, "cpu", by_name=True) == "aten"
