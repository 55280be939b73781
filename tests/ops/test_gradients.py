"""Autograd and registration: opcheck, gradcheck, and gradients equal to plain PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from tests.ops.cases import (
    ACTS,
    GEOMETRIES,
    OPS,
    WINDOWED,
    Arguments,
    Geometry,
    arguments,
    mapped,
    ordered,
    plain,
    run,
    tensors,
)
from tests.support import assert_as_close_over

TINY = Geometry((3, 4), (3, 3), (1, 1), (1, 1, 1, 1))
CONVOLVING = tuple(op for op in OPS if op != "squeeze_excite_gate")


def leaves(args: Arguments, dtype: torch.dtype | None = None) -> Arguments:
    return mapped(args, lambda t: t.detach().to(dtype or t.dtype).clone().requires_grad_())


def parameters(args: Arguments, dtype: torch.dtype | None = None) -> Arguments:
    """As ``leaves``, but for the statistics, which PyTorch's batch norm has no gradients for."""
    found = leaves(args, dtype)
    for name, norm in found.items():
        if name.endswith("norm"):
            found[name] = [v.detach() if i < 2 else v for i, v in enumerate(norm)]
    return found


def gradients(function, op: str, args: Arguments) -> list[Tensor]:
    """Of a random weighting of all the outputs, for all the tensor arguments that ask for one."""
    generator = torch.Generator().manual_seed(5)
    total = 0
    for output in function(op, args):
        mix = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        total = total + (output * mix.to(output.dtype)).double().sum()
    return list(torch.autograd.grad(total, [t for t in tensors(args) if t.requires_grad]))


@pytest.mark.parametrize("requires_grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "SAME", "bare", "channels_last", "pixel"])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, kind: str, requires_grad: bool) -> None:
    args = {
        "float32": lambda: arguments(op, TINY),
        "bfloat16": lambda: (
            arguments(op, TINY, dtype=torch.bfloat16, bias_dtype=torch.float32)
            if op in CONVOLVING
            else arguments(op, dtype=torch.bfloat16)
        ),
        "SAME": lambda: arguments(op, Geometry((5, 6), (3, 3), (2, 2), ())),
        "bare": lambda: arguments(op, TINY, extra=False, act="none"),
        "channels_last": lambda: arguments(op, TINY, layout="channels_last", act="hardswish"),
        "pixel": lambda: arguments(op, GEOMETRIES["1x1 of one pixel"], act="gelu"),
    }[kind]()
    if requires_grad:
        args = mapped(args, lambda t: t.requires_grad_())
    # The tolerance is for bf16: the compiled backward may round in another order.
    checks = torch.library.opcheck(
        getattr(torch.ops.effv2, op).default,
        ordered(op, args),
        **({"atol": 0.05, "rtol": 0.05} if kind == "bfloat16" else {}),
    )
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("extra", [False, True], ids=["alone", "extra"])
@pytest.mark.parametrize("act", ["none", "silu", "gelu"])
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op: str, act: str, extra: bool) -> None:
    build = arguments(op, TINY, dtype=torch.float64, channels=(2, 3), batch=1, act=act, extra=extra)
    args = leaves(build)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given = iter(values)
        found = run(op, mapped(args, lambda _: next(given)))
        return tuple(output for output in found if output.numel())

    inputs = tuple(tensors(args))
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("op", OPS)
def test_gradients_are_those_of_the_plain_computation(
    op: str, act: str, dtype: torch.dtype
) -> None:
    for geometry in (TINY, GEOMETRIES["3x3 stride 2 uneven"] if op in WINDOWED else TINY):
        draws = []
        for seed in range(4):  # a value at the edge of relu is a throw of dice
            args = arguments(op, geometry, dtype=dtype, act=act, batch=8, seed=seed)
            found = gradients(run, op, parameters(args))
            eager = gradients(plain, op, parameters(args))
            exact = gradients(plain, op, parameters(args, torch.float64))
            assert all(o.dtype == dtype for o in found)
            draws.append(([alike(found, exact)], alike(eager, exact), alike(exact, exact)))
        assert_as_close_over(draws, factor=3.0)


def alike(gradients: list[Tensor], exact: list[Tensor]) -> Tensor:
    """All in one vector, in which each tensor's weighs as much as another's."""
    pairs = zip(gradients, exact, strict=True)
    return torch.cat([(g.double() / right.norm()).flatten() for g, right in pairs])


@pytest.mark.parametrize("op", OPS)
def test_only_what_is_asked_for_gets_a_gradient(op: str) -> None:
    args = arguments(op, dtype=torch.float64)
    whole = leaves(args)
    sum(output.sum() for output in run(op, whole)).backward()
    for asked, expected in zip(tensors(args), tensors(whole), strict=True):
        alone = asked.clone().requires_grad_()
        one = mapped(args, lambda t, asked=asked, alone=alone: alone if t is asked else t)
        sum(output.sum() for output in run(op, one)).backward()
        torch.testing.assert_close(alone.grad, expected.grad)
        assert not any(t.requires_grad for t in tensors(one) if t is not alone)


@pytest.mark.parametrize("op", ["depthwise_bias_act", "expand_depthwise"])
def test_either_output_alone(op: str) -> None:
    for index in (0, 1):
        ours, theirs = (leaves(arguments(op, dtype=torch.float64)) for _ in range(2))
        run(op, ours)[index].square().sum().backward()
        plain(op, theirs)[index].square().sum().backward()
        for a, b in zip(tensors(ours), tensors(theirs), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_one_tensor_passed_twice() -> None:
    for again in (False, True):
        grads = []
        for function in (run, plain):
            args = arguments("conv_bias_act", channels=(20, 20), dtype=torch.float64)
            x = args["x"].requires_grad_()
            (output,) = function("conv_bias_act", args | {"residual": x})
            grads += torch.autograd.grad(output.square().sum(), x, create_graph=again)
        torch.testing.assert_close(*grads)


def test_backward_inside_autocast_keeps_the_forward_dtype() -> None:
    """Autocast casts (and records) before the op: what was computed in fp32 stays fp32."""
    outside, inside = leaves(arguments("conv_bias_act")), leaves(arguments("conv_bias_act"))
    run("conv_bias_act", outside)[0].square().sum().backward()
    total = run("conv_bias_act", inside)[0].square().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total.backward()
    for a, b in zip(tensors(outside), tensors(inside), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("op", ["fused_mbconv", "squeeze_excite_gate"])
def test_checkpoint(op: str, reentrant: bool) -> None:
    ours, theirs = leaves(arguments(op)), leaves(arguments(op))

    def function(*values: Tensor) -> Tensor:
        given = iter(values)
        return run(op, mapped(ours, lambda _: next(given)))[0]

    checkpoint(function, *tensors(ours), use_reentrant=reentrant).square().sum().backward()
    run(op, theirs)[0].square().sum().backward()
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("op", OPS)
def test_changed_in_place_before_backward(op: str) -> None:
    args = leaves(arguments(op))
    total = run(op, args)[0].sum()
    with torch.no_grad():
        next(tensors(args)).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("op", OPS)
def test_forward_mode_is_refused(op: str) -> None:
    """PyTorch would return the value and drop the tangent."""
    args = arguments(op)
    first = next(k for k, v in args.items() if isinstance(v, Tensor))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode"):
        run(op, args | {first: forward_ad.make_dual(args[first], args[first])})
    with pytest.raises(RuntimeError, match="forward-mode"):
        torch.func.jvp(lambda x: run(op, args | {first: x})[0], (args[first],), (args[first],))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("op", OPS)
def test_vmap_is_a_loop_and_its_gradient_is_refused(op: str) -> None:
    """There is no batching rule: PyTorch loops over the samples, which is slow and right."""
    args = arguments(op, dtype=torch.float64)
    first = next(k for k, v in args.items() if isinstance(v, Tensor))
    many = torch.stack([args[first], args[first] * 2, args[first] - 1])
    found = torch.vmap(lambda x: run(op, args | {first: x})[0])(many)
    right = torch.stack([plain(op, args | {first: x})[0] for x in many])
    torch.testing.assert_close(found, right)
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: run(op, args | {first: x})[0].sum())(args[first])
