"""Batch norms that are unlike those of the other tests, for every op that has one."""

from __future__ import annotations

import pytest
import torch

from effv2_kernels.engines import triton as triton_ops
from effv2_kernels.launch.triton.conv import Choice
from tests.ops.cases import SMALL, Arguments, arguments
from tests.support import relative_error
from tests.triton.interpreted.check import check, run

OPS = (*triton_ops.RUN, "expand_depthwise")


def norms(args: Arguments) -> list[str]:
    return [name for name in args if name.endswith("norm")]


def with_variance(args: Arguments, least: float, most: float) -> Arguments:
    """Between the two, on a logarithmic scale."""
    for name in norms(args):
        variance = args[name][1]
        torch.logspace(least, most, len(variance), out=variance)
    return args


@pytest.mark.parametrize("op", OPS)
def test_variances_that_are_small_beside_eps(op: str) -> None:
    """So that each convolution's own eps decides."""
    args = with_variance(arguments(op), -12.0, -6.0)
    found = check(op, args)
    for name in (name for name in args if name.endswith("eps")):
        changed = run(op, args | {name: 2 * args[name]})
        assert relative_error(changed[0], found[0]) > 1e-2, f"{name} is not heeded"


@pytest.mark.parametrize("op", OPS)
def test_variances_that_are_large(op: str) -> None:
    args = arguments(op, dtype=torch.float16, bias_dtype=torch.float32)
    check(op, with_variance(args, 4.0, 9.0))


@pytest.mark.parametrize("op", OPS)
def test_vectors_of_two_dtypes(op: str) -> None:
    args = arguments(op, dtype=torch.float16)
    biases = {name: args[name].float() for name in args if name.endswith("bias")}
    check(op, args | biases)
    check(op, args | {name: [vector.float() for vector in args[name]] for name in norms(args)})


@pytest.mark.parametrize("op", OPS)
def test_channels_that_are_switched_off(op: str) -> None:
    """A gamma of 0 leaves beta."""
    args = arguments(op, SMALL)
    for name in norms(args):
        args[name][2][::2] = 0.0
    check(op, args)


@pytest.mark.parametrize("split", [1, 2])
def test_neither_norm_nor_bias(split: int, tiles) -> None:
    tiles("conv", Choice(32, 16, 16, split, 4, 2))
    for op in OPS:
        args = arguments(op, norm="none")
        check(op, args | {name: None for name in args if name.endswith("bias")})


def test_what_a_norm_multiplies_is_not_rounded() -> None:
    """A convolution's sums stay in float32: in 16 bits the mean would swallow what is left."""
    args = arguments("conv_bias_act", dtype=torch.float16, bias_dtype=torch.float32, extra=False)
    args |= {"act": "none", "x": args["x"] * 2.0**-6 + 1.0}
    sums = torch.nn.functional.conv2d(args["x"].double(), args["weight"].double())
    mean, variance = sums.mean((0, 2, 3)), sums.var((0, 2, 3))
    args |= {"bias": None, "padding": [0, 0, 0, 0]}
    args["norm"][:2] = mean.float(), variance.float()
    found = run("conv_bias_act", args)[0]
    normed = torch.nn.functional.batch_norm(
        sums, mean, variance, *(vector.double() for vector in args["norm"][2:]), eps=args["eps"]
    )
    assert relative_error(found, normed) < 5e-4
