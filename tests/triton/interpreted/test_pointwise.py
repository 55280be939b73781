"""1x1 ``conv_bias_act`` by programs that keep their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from triton.runtime import interpreter

from effv2_kernels.engines.triton import conv
from effv2_kernels.launch.targets import KNOWN
from effv2_kernels.launch.triton.conv import Choice, Shape, candidates, divided
from tests.ops.cases import ACTS, Geometry, arguments, plain
from tests.triton.interpreted.check import DTYPES, check, run, vectors

# Of one multiprocessor, which is what the interpreter has.
EIGHT_PROGRAMS = Choice(
    block_m=32, block_n=16, block_k=16, split_k=1, warps=4, stages=2, resident=8
)
PLAIN = (1, 1)


@pytest.fixture(autouse=True)
def bounds_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter asks for the integer that an array of one element is, which NumPy 2.4 has no
    answer to; no other kernel of ours has bounds that are known at run time only."""
    usual = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        usual(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch)


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One element for each time that pixels were streamed."""
    calls: list[None] = []
    usual = conv.stream

    def noted(*args) -> None:
        calls.append(None)
        usual(*args)

    monkeypatch.setattr(conv, "stream", noted)
    return calls


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [16, 48, 64, 80, 160])
@pytest.mark.parametrize("out", [5, 16, 57])
def test_channels(channels: int, out: int, dtype: torch.dtype, tiles, streamed: list) -> None:
    """Channels that are a power of two and two of them; outputs that end within a tile."""
    tiles("conv", EIGHT_PROGRAMS)
    for extra in (False, True):
        args = arguments(
            "conv_bias_act",
            Geometry((9, 13), PLAIN),
            dtype=dtype,
            channels=(channels, out),
            batch=3,
            extra=extra,
            seed=channels + out,
            **vectors(channels + out),
        )
        check("conv_bias_act", args)
    assert len(streamed) == 2


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_fewer_tiles_of_pixels_than_programs_and_many_times_as_many(
    batch: int, tiles, streamed: list
) -> None:
    tiles("conv", EIGHT_PROGRAMS)
    args = arguments("conv_bias_act", Geometry((5, 5), PLAIN), channels=(16, 20), batch=batch)
    check("conv_bias_act", args)
    assert len(streamed) == 1


@pytest.mark.parametrize("act", ACTS)
def test_activations_and_nan_only_where_pytorch_has_it(act: str, tiles, streamed: list) -> None:
    tiles("conv", EIGHT_PROGRAMS)
    args = arguments("conv_bias_act", Geometry((7, 7), PLAIN), channels=(32, 24), act=act)
    check("conv_bias_act", args)
    args["x"][1, 3, 4, 4] = torch.nan
    (found,), (eager,) = run("conv_bias_act", args), plain("conv_bias_act", args)
    assert torch.equal(found.isnan(), eager.isnan())
    assert len(streamed) == 2


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((9, 9), PLAIN, (2, 2)),
        Geometry((9, 9), PLAIN, (1, 1), (1, 1, 0, 0)),
        Geometry((9, 9), (3, 3), (1, 1), (1, 1, 1, 1)),
    ],
)
def test_windows_that_are_no_single_pixel_are_tiles(geometry: Geometry, tiles, streamed) -> None:
    tiles("conv", EIGHT_PROGRAMS)
    check("conv_bias_act", arguments("conv_bias_act", geometry, channels=(32, 24)))
    assert not streamed


def test_a_depth_is_one_power_of_two_or_two() -> None:
    assert [divided(n) for n in (16, 64, 80, 160, 192, 224, 24, 8)] == [
        *((16, 0), (64, 0), (64, 16), (128, 32), (128, 64)),
        *((0, 0),) * 3,
    ]
    shapes = {c: Shape(73728, c, 960, 1) for c in (160, 224)}
    found = {c: list(candidates(s, "bfloat16", KNOWN["sm_90a"])) for c, s in shapes.items()}
    assert any(choice.resident for choice in found[160])
    assert not any(choice.resident for choice in found[224])


@pytest.mark.parametrize("name", ["sm_80", "sm_100"])
def test_weights_stay_where_products_read_them_from_shared_memory(name: str) -> None:
    shape = Shape(73728, 160, 960, 1)
    assert not any(choice.resident for choice in candidates(shape, "bfloat16", KNOWN[name]))
