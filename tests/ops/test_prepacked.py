"""Weights in oneDNN's own layout give what plain weights give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from effv2_kernels.engines import onednn
from tests.ops.cases import (
    ACTS,
    GEOMETRIES,
    OPS,
    SMALL,
    WINDOWED,
    Arguments,
    Geometry,
    arguments,
    mapped,
    packed,
    plain,
    run,
    tensors,
)
from tests.support import assert_as_close_as_pytorch

CONVOLVING = [op for op in OPS if op != "squeeze_excite_gate"]
NATIVE = [dtype for dtype in (torch.float32, torch.bfloat16) if dtype in onednn.onednn_dtypes()]
pytestmark = pytest.mark.skipif(not NATIVE, reason="this PyTorch has no oneDNN")


def folded(op: str, *args: Any, **options: Any) -> Arguments:
    """Only weights that a norm was folded into are packed."""
    return arguments(op, *args, norm="none", **options)


def check(op: str, args: Arguments, size: tuple[int, int] | None = None) -> None:
    prepacked = packed(op, args, size)
    assert any(t.is_mkldnn for t in tensors(prepacked))
    found = run(op, prepacked)
    exact = plain(op, mapped(args, Tensor.double))
    for ours, theirs, right in zip(found, plain(op, args), exact, strict=True):
        assert ours.dtype == theirs.dtype and not ours.is_mkldnn
        if right.numel():
            assert_as_close_as_pytorch(ours, theirs, right)
    for ours, usual in zip(found, run(op, args), strict=True):
        assert ours.stride() == usual.stride()


@pytest.mark.parametrize("dtype", NATIVE, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("op", WINDOWED)
def test_windows(op: str, geometry: Geometry, dtype: torch.dtype) -> None:
    check(op, folded(op, geometry, dtype=dtype, batch=geometry.batch()))


@pytest.mark.parametrize("dtype", NATIVE, ids=str)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("op", CONVOLVING)
def test_activations_and_layouts(op: str, act: str, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last", "sliced"):
        for extra in (False, True):
            kind = {"act": act, "layout": layout, "extra": extra, "channels": (20, 74)}
            check(op, folded(op, SMALL, dtype=dtype, bias_dtype=torch.float32, **kind))


@pytest.mark.parametrize("dtype", NATIVE, ids=str)
@pytest.mark.parametrize("size", [(33, 17), (64, 64), (3, 3)], ids=str)
@pytest.mark.parametrize("op", CONVOLVING)
def test_packed_for_another_size(op: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    check(op, folded(op, GEOMETRIES["3x3"], dtype=dtype, channels=(20, 74)), size)
    check(op, folded(op, SMALL, dtype=dtype, batch=0), size)


@pytest.mark.parametrize("op", CONVOLVING)
def test_gradient_for_the_input(op: str) -> None:
    args = folded(op)
    ours = packed(op, args) | {"x": args["x"].clone().requires_grad_()}
    theirs = args | {"x": args["x"].clone().requires_grad_()}
    run(op, ours)[0].square().sum().backward()
    plain(op, theirs)[0].square().sum().backward()
    torch.testing.assert_close(ours["x"].grad, theirs["x"].grad, rtol=1e-4, atol=1e-4)


def test_packing_leaves_the_weight_alone() -> None:
    weight = folded("conv_bias_act")["weight"]
    before = weight.clone()
    layout = onednn.prepack(weight, (2, 7, 5, 6), [1, 1], [1, 1, 1, 1], 1)
    weight.zero_()
    assert torch.equal(layout.to_dense(), before), "the packed weight is a view of the plain one"
