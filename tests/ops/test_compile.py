"""Each op inside torch.compile: one graph, dynamic sizes, no endless recompilation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.ops.cases import OPS, WINDOWED, Arguments, Geometry, arguments, mapped, run, tensors

PADDINGS = {"symmetric": (1, 1, 1, 1), "SAME": ()}
SIZES = [(2, (8, 9)), (3, (11, 10)), (5, (16, 21)), (4, (13, 13)), (6, (7, 30))]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def function(op: str, args: Arguments) -> Tensor:
    """Something before and after the op, so that its strides meet other code."""
    first = next(name for name, value in args.items() if isinstance(value, Tensor))
    outputs = run(op, args | {first: args[first] * 2})
    return sum(output.flatten(1).sum(1) + output.numel() for output in outputs)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize(
    ("op", "padding"), [(op, "symmetric") for op in OPS] + [(op, "SAME") for op in WINDOWED]
)
def test_sizes_share_a_graph(op: str, padding: str, requires_grad: bool) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda args: function(op, args), backend=counter, fullgraph=True)
    counts = []
    for batch, size in SIZES:
        geometry = Geometry(size, (3, 3), (1, 1), PADDINGS[padding])
        args = arguments(op, geometry, batch=batch)
        args = mapped(args, lambda t: t.requires_grad_(requires_grad))
        right, found = function(op, args), compiled(args)
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
        if requires_grad:
            inputs = list(tensors(args))
            theirs = torch.autograd.grad(right.sum(), inputs)
            ours = torch.autograd.grad(found.sum(), inputs)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        counts.append(counter.frame_count)
    assert counts[0] == 1 and counts[1] <= 2 and counts[-1] == counts[1], counts


@pytest.mark.parametrize("op", OPS)
def test_the_graph_calls_the_op(op: str) -> None:
    """It is not decomposed: the compiled program runs the same kernel."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda args: function(op, args), backend=counter, fullgraph=True)
    compiled(arguments(op))
    targets = {node.target for node in counter.graphs[0].graph.nodes}
    assert getattr(torch.ops.effv2, op).default in targets


@pytest.mark.parametrize("op", OPS)
def test_export(op: str) -> None:
    args = arguments(op)

    class Program(torch.nn.Module):
        def forward(self, **given: Tensor) -> Tensor:
            return function(op, args | given)

    given = {name: value for name, value in args.items() if isinstance(value, Tensor)}
    program = torch.export.export(Program(), (), given).module()
    torch.testing.assert_close(program(**given), function(op, args))
