"""Under autocast an op computes, as a convolution does, in autocast's dtype."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import NAMES, OPS, Arguments, arguments, mapped, run, tensors

DTYPES = [torch.bfloat16, torch.float16]


def norms(args: Arguments) -> Arguments:
    return {name: value for name, value in args.items() if name.endswith("norm")}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_float32_arguments_are_cast(op: str, dtype: torch.dtype) -> None:
    args = arguments(op)
    with torch.autocast("cpu", dtype=dtype):
        found = run(op, args)
    # Not the norm, as in PyTorch: its statistics would lose their digits.
    right = run(op, mapped(args, lambda t: t.to(dtype)) | norms(args))
    for output, expected in zip(found, right, strict=True):
        assert output.dtype == dtype and torch.equal(output, expected)


@pytest.mark.parametrize("op", OPS)
def test_mixed_arguments_agree_after_the_cast(op: str) -> None:
    """Activations already in bf16, parameters in float32: the usual state inside a network."""
    args = arguments(op)
    first = NAMES[op][0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(op, args | {first: args[first].bfloat16()})
    assert all(output.dtype == torch.bfloat16 for output in found)


@pytest.mark.parametrize("op", OPS)
def test_disabled_region(op: str) -> None:
    args = arguments(op)
    right = run(op, args)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        found = run(op, args)
    for output, expected in zip(found, right, strict=True):
        assert output.dtype == torch.float32 and torch.equal(output, expected)
    after = run(op, args)
    assert all(output.dtype == torch.float32 for output in after)


@pytest.mark.parametrize("op", OPS)
def test_float64_is_left_alone(op: str) -> None:
    args = arguments(op, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(op, args)
    assert all(output.dtype == torch.float64 for output in found)


@pytest.mark.parametrize("op", OPS)
def test_gradients_return_in_the_arguments_dtype(op: str) -> None:
    args = mapped(arguments(op), lambda t: t.requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = run(op, args)[0]
    output.float().square().sum().backward()
    for tensor in tensors(args):
        assert tensor.grad.dtype == torch.float32
    for tensor in tensors({k: v for k, v in args.items() if k not in norms(args)}):
        # Exact gradients of a bf16 computation are bf16 numbers.
        assert torch.equal(tensor.grad, tensor.grad.bfloat16().float())


@pytest.mark.parametrize("op", OPS)
def test_compiled_under_autocast(op: str) -> None:
    args = arguments(op)
    compiled = torch.compile(lambda a: run(op, a)[0], backend="aot_eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(args), run(op, args)[0])
    torch._dynamo.reset()
