"""Every op against float64, by DESIGN section 6, on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.cases import (
    ACTS,
    DTYPES,
    GATES,
    GEOMETRIES,
    LAYOUTS,
    OPS,
    SMALL,
    WINDOWED,
    Arguments,
    Geometry,
    arguments,
    mapped,
    plain,
    run,
    tensors,
)
from tests.support import assert_as_close_as_pytorch, relative_error

LOW = (torch.bfloat16, torch.float16)
CHANNELS = ((3, 20), (7, 3), (20, 74), (74, 7))


def storage_bytes(tensor: Tensor) -> Tensor:
    """A copy of all the memory that a tensor is a view of."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).clone()


def restrided(tensor: Tensor) -> Tensor:
    """With the strides of an empty channels_last tensor; ``contiguous`` would leave it alone."""
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)


def check(op: str, args: Arguments) -> tuple[Tensor, ...]:
    """Right by the rule, and nothing but the outputs is written."""
    before = [storage_bytes(t) for t in tensors(args)]
    found = run(op, args)
    for old, tensor in zip(before, tensors(args), strict=True):
        assert torch.equal(old, storage_bytes(tensor)), "an argument was written"
    reference = plain(op, mapped(args, torch.Tensor.double))
    eager = plain(op, args)
    for output, theirs, right in zip(found, eager, reference, strict=True):
        assert output.shape == right.shape and output.dtype == theirs.dtype
        tiny = 1e-14 if output.dtype == torch.float64 else 1e-6
        if right.numel():
            assert_as_close_as_pytorch(output, theirs, right, tiny=tiny)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("op", WINDOWED)
def test_windows(op: str, geometry: Geometry, dtype: torch.dtype) -> None:
    seed = list(GEOMETRIES.values()).index(geometry)
    options = {"channels": CHANNELS[seed % 4], "batch": geometry.batch(), "seed": seed}
    check(op, arguments(op, geometry, dtype=dtype, **options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("op", OPS)
def test_channels_and_batches(
    op: str, batch: int, channels: tuple[int, int], dtype: torch.dtype
) -> None:
    check(op, arguments(op, dtype=dtype, channels=channels, batch=batch, seed=batch))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (19, 19), (38, 75)], ids=str)
@pytest.mark.parametrize("op", ["gated_project", "conv_act_pool"])
def test_pointwise_sizes(op: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    check(op, arguments(op, Geometry(size, (1, 1)), dtype=dtype, channels=(74, 20)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extra", [False, True], ids=["alone", "extra"])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("op", OPS)
def test_activations(op: str, act: str, extra: bool, dtype: torch.dtype) -> None:
    check(op, arguments(op, dtype=dtype, act=act, extra=extra))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gate", GATES)
def test_gates(gate: str, dtype: torch.dtype) -> None:
    check("squeeze_excite_gate", arguments("squeeze_excite_gate", dtype=dtype, gate=gate))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ["silu", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_layouts(op: str, layout: str, act: str, dtype: torch.dtype) -> None:
    check(op, arguments(op, dtype=dtype, layout=layout, act=act))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", [SMALL, GEOMETRIES["1x1 of one pixel"]], ids=["5x6", "1x1"])
@pytest.mark.parametrize("channels", [(1, 20), (20, 1), (1, 1), (7, 20)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_strides_with_several_right_answers(
    op: str, channels: tuple[int, int], geometry: Geometry, dtype: torch.dtype
) -> None:
    """One channel or one pixel, as whoever made the tensor happened to stride it."""
    for act in ("none", "silu"):
        options = {"channels": channels, "batch": geometry.batch(), "act": act}
        args = arguments(op, geometry, dtype=dtype, **options)
        check(op, args)
        maps = [k for k, v in args.items() if isinstance(v, Tensor) and v.dim() == 4]
        for chosen in (maps, ["x"], ["residual"]):
            check(op, args | {k: restrided(args[k]) for k in maps if k in chosen})


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
@pytest.mark.parametrize("act", ["silu", "none"])
@pytest.mark.parametrize("op", [op for op in OPS if op != "squeeze_excite_gate"])
def test_biases_in_float32(op: str, act: str, layout: str, dtype: torch.dtype) -> None:
    check(op, arguments(op, dtype=dtype, layout=layout, act=act, bias_dtype=torch.float32))


@pytest.mark.parametrize("op", ["conv_bias_act", "gated_project"])
def test_residual_broadcast_by_strides(op: str) -> None:
    for act in ("none", "silu"):
        args = arguments(op, act=act)
        args["residual"] = args["residual"][:, :, :1, :1].expand_as(args["residual"])
        check(op, args)


def test_residual_that_is_the_input() -> None:
    args = arguments("conv_bias_act", channels=(20, 20))
    check("conv_bias_act", args | {"residual": args["x"]})


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stem_takes_any_floating_image(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    args = arguments("stem", GEOMETRIES["3x3 stride 2 SAME"], dtype=weight_dtype, channels=(3, 20))
    (found,) = check("stem", args | {"x": args["x"].to(dtype)})
    assert found.dtype == weight_dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("op", OPS)
def test_nan_and_infinity_come_out_where_pytorch_has_them(
    op: str, act: str, bad: float, dtype: torch.dtype
) -> None:
    args = arguments(op, Geometry((9, 9), (3, 3), (1, 1), (1, 1, 1, 1)), dtype=dtype, act=act)
    first = next(tensors(args))
    first[0, 3] = bad if op == "squeeze_excite_gate" else first[0, 3]
    if op != "squeeze_excite_gate":
        first[0, 3, 4, 4] = bad
    for found, eager in zip(run(op, args), plain(op, args), strict=True):
        assert torch.equal(found.isnan(), eager.isnan())
        if act != "gelu":  # far in gelu's tail it is -0 or, by another formula, NaN
            assert torch.equal(found.isinf(), eager.isinf())
    if torch.tensor(bad).isnan():
        assert run(op, args)[0][0].isnan().any()


@pytest.mark.parametrize("op", OPS)
def test_outputs_are_written_whole(op: str) -> None:
    """The memory that the allocator hands out next is full of NaN."""
    for dtype in DTYPES:
        args = arguments(op, dtype=dtype)
        for output in plain(op, args):
            torch.full_like(output, torch.nan)
        assert not any(output.isnan().any() for output in run(op, args))


@pytest.mark.parametrize("op", OPS)
def test_outputs_share_no_memory(op: str) -> None:
    """An output that aliased an argument would change under later in-place work."""
    for dtype in (torch.float32, torch.float64):
        args = arguments(op, GEOMETRIES["1x1 of one pixel"], dtype=dtype, act="none", extra=False)
        known = {t.untyped_storage().data_ptr() for t in tensors(args)}
        for output in run(op, args):
            assert not output.numel() or output.untyped_storage().data_ptr() not in known


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("op", OPS)
def test_without_autograd(op: str, mode) -> None:
    args = arguments(op)
    with mode():
        found = run(op, mapped(args, lambda t: t.clone().requires_grad_()))
    for output, right in zip(found, run(op, args), strict=True):
        assert torch.equal(output, right) and not output.requires_grad
        assert output.is_inference() == (mode is torch.inference_mode)


@pytest.mark.parametrize("op", OPS)
def test_same_bits_every_time(op: str) -> None:
    args = arguments(op, GEOMETRIES["3x3"], channels=(74, 20))
    for first, second in zip(run(op, args), run(op, args), strict=True):
        assert torch.equal(first, second)


def test_the_measure_can_fail() -> None:
    args = arguments("conv_bias_act")
    right = plain("conv_bias_act", mapped(args, torch.Tensor.double))[0]
    found = run("conv_bias_act", args)[0]
    assert relative_error(found, right) < 1e-6 < relative_error(found + 1e-5, right)
    with pytest.raises(AssertionError):
        assert_as_close_as_pytorch(torch.full_like(found, torch.nan), found, right)
