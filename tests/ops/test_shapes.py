"""What the fakes promise is what the ops return: sizes, strides, dtype and device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, StatelessSymbolicContext

from tests.ops.cases import (
    DTYPES,
    GEOMETRIES,
    LAYOUTS,
    OPS,
    SMALL,
    WINDOWED,
    Geometry,
    arguments,
    mapped,
    run,
)


def facts(output: Tensor) -> tuple:
    return tuple(output.shape), output.stride(), output.dtype


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("op", WINDOWED)
def test_windows(op: str, geometry: Geometry) -> None:
    for dtype in (torch.float32, torch.float64):
        args = arguments(op, geometry, dtype=dtype)
        found = run(op, args)
        assert found[0].shape[2:] == geometry.out()
        promised = run(op, mapped(args, lambda t: t.to("meta")))
        assert [facts(o) for o in found] == [facts(o) for o in promised]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [(7, 20), (1, 20), (20, 1)], ids=str)
@pytest.mark.parametrize("size", [(5, 6), (1, 1), (1, 6)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_real_strides_are_the_promised_ones(
    op: str, size: tuple[int, int], channels: tuple[int, int], layout: str
) -> None:
    geometry = Geometry(size, (3, 3), (1, 1), (1, 1, 1, 1))
    for dtype in DTYPES:
        for batch in (0, 1, 2):
            kind = {"channels": channels, "layout": layout, "dtype": dtype, "batch": batch}
            for act, extra in (("none", True), ("silu", True), ("relu", False)):
                args = arguments(op, geometry, act=act, extra=extra, **kind)
                found = run(op, args)
                with FakeTensorMode() as mode:
                    promised = run(op, mapped(args, mode.from_tensor))
                assert [facts(o) for o in found] == [facts(o) for o in promised], (dtype, batch)
                for output in found:
                    if output.dim() == 4:
                        empty = torch.empty(output.shape, memory_format=torch.channels_last)
                        assert output.stride() == empty.stride()
                    else:
                        assert output.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_fake_cuda_tensors(op: str, dtype: torch.dtype) -> None:
    """No GPU is needed to trace for one."""
    args = arguments(op, dtype=dtype)
    with FakeTensorMode():
        fake = mapped(args, lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda"))
        promised = run(op, fake)
    for output, real in zip(promised, run(op, args), strict=True):
        assert output.device == torch.device("cuda", 0)
        assert facts(output) == facts(real)


@pytest.mark.parametrize("geometry", [SMALL, GEOMETRIES["3x3 stride 2 SAME"]], ids=["3x3", "SAME"])
@pytest.mark.parametrize("op", OPS)
def test_symbolic_sizes(op: str, geometry: Geometry) -> None:
    """Batch and image stay symbols: nothing in check or fake ties them to a number."""
    args = arguments(op, geometry, extra=op not in ("conv_bias_act", "gated_project"))
    first = "pooled" if op == "squeeze_excite_gate" else "x"
    axes = [0] if op == "squeeze_excite_gate" else [0, 2, 3]
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes)
    dynamic = torch.fx.experimental.symbolic_shapes.DimDynamic
    kinds = [dynamic.DYNAMIC if i in axes else dynamic.STATIC for i in range(args[first].dim())]
    symbolic = mode.from_tensor(
        args[first],
        symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds),
        source=torch._dynamo.source.ConstantSource("x"),
    )
    with mode:
        rest = mapped(args, mode.from_tensor)
        output = run(op, rest | {first: symbolic})[0]
    assert isinstance(output.shape[0], torch.SymInt)
    if output.dim() == 4:
        assert all(isinstance(size, torch.SymInt) for size in output.shape[2:])
        hints = [size.node.hint for size in output.shape[2:]]
        assert tuple(hints) == tuple(run(op, args)[0].shape[2:])
    assert all(
        symbol not in shapes.replacements for symbol in symbolic.shape[0].node.expr.free_symbols
    )


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stem_promises_the_dtype_of_its_weight(
    dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    args = arguments("stem", dtype=weight_dtype)
    args["x"] = args["x"].to(dtype)
    (promised,) = run("stem", mapped(args, lambda t: t.to("meta")))
    assert facts(promised) == facts(run("stem", args)[0]) and promised.dtype == weight_dtype
