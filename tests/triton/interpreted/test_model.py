"""A whole small network on Triton, on CPU tensors, and the ops of ``effv2_triton`` as operators."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

import effv2_kernels as ek
import python_ref
from python_ref.variants import Stage, Variant
from tests.ops.cases import OPS, arguments, ordered
from tests.support import assert_as_close_over, draws, in_float64, randomise, relative_error

# Every kind of block: expansion 1, fused with stride and residual, MBConv with both kernel sizes.
TINY = Variant(
    name="tiny",
    stem=8,
    stages=(
        Stage("fused", 3, 1, 1, 8, 1, 0.0),
        Stage("fused", 3, 2, 4, 12, 2, 0.0),
        Stage("mbconv", 3, 2, 4, 20, 2, 0.25),
        Stage("mbconv", 5, 1, 4, 24, 1, 0.25),
    ),
    head=40,
    dropout=0.0,
    train_size=32,
    eval_size=32,
)


@pytest.fixture
def guarded() -> None:
    """Not here: opcheck looks at where outputs begin in their storage."""


def tiny(padding: str) -> nn.Module:
    style = python_ref.ConvStyle(padding=padding)
    model = python_ref.EfficientNet(TINY, num_classes=7, style=style)
    return randomise(model, size=40).eval()


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@torch.no_grad()
def test_a_patched_network_equals_the_reference(padding: str) -> None:
    model, x = tiny(padding), torch.randn(2, 3, 29, 34)
    eager, reports = model(x), []

    def patch(drawn: nn.Module) -> None:
        reports.append(ek.patch(drawn, backend="triton", strict=True))

    assert_as_close_over(draws(model, x, patch, calls=1, number=2))
    report = reports[0]
    assert report.backend == "triton" and report.coverage > 0.99
    engines = dict(re.findall(r"(\w+)\[(\w+)\]", str(report)))
    assert engines.pop("squeeze_excite_gate") == "aten"
    assert engines.keys() == {
        *("stem", "conv_bias_act", "fused_mbconv", "depthwise_bias_act"),
        *("gated_project", "conv_act_pool"),
    }
    assert set(engines.values()) == {"triton"}
    # What is dispatched is the op that those two are.
    dispatched = engines.keys() - {"depthwise_bias_act"} | {
        "expand_depthwise",
        "squeeze_excite_gate",
    }
    # The second time oneDNN would pack its weights.
    assert ran_on_triton(model, x) == dispatched
    ek.unpatch(model)
    assert torch.equal(model(x), eager) and not ran_on_triton(model, x)


@torch.no_grad()
def ran_on_triton(model: nn.Module, x: torch.Tensor) -> set[str]:
    with torch.profiler.profile() as profile:
        model(x)
    names = [event.name.split("::") for event in profile.events()]
    assert not any(name[0] == "effv2" for name in names)
    return {name[1] for name in names if name[0] == "effv2_triton"}


def by_pickle(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle])
@torch.no_grad()
def test_a_copy_stays_on_triton(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, x = tiny("same"), torch.randn(1, 3, 32, 32)
    ek.patch(model, backend="triton")
    twin = copied(model)
    assert ran_on_triton(twin, x) == ran_on_triton(model, x) != set()
    assert torch.equal(twin(x), model(x))


@torch.no_grad()
def test_changed_weights_are_seen() -> None:
    model, x = tiny("symmetric"), torch.randn(1, 3, 32, 32)
    ek.patch(model, backend="triton")
    before = model(x)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight[0] *= -1
    eager = copy.deepcopy(model)
    ek.unpatch(eager)
    right, after = in_float64(eager, x), model(x)
    assert relative_error(after, right) < 1e-4 < 1e-2 < relative_error(before, right)


@torch.no_grad()
def test_compiled_without_a_graph_break() -> None:
    model, x = tiny("same"), torch.randn(1, 3, 32, 24)
    ek.patch(model, backend="triton")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str) -> None:
    args = ordered(op, arguments(op))
    torch.library.opcheck(getattr(torch.ops.effv2_triton, op).default, args)


@pytest.mark.parametrize("op", OPS)
def test_one_clear_error(op: str) -> None:
    first, *rest = ordered(op, arguments(op))
    with pytest.raises(RuntimeError, match=f"effv2::{op}"):
        getattr(torch.ops.effv2_triton, op)(first[0], *rest)


@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_float64_runs_through_aten(op: str) -> None:
    args = ordered(op, arguments(op, dtype=torch.float64))
    found = getattr(torch.ops.effv2_triton, op)(*args)
    want = getattr(torch.ops.effv2, op)(*args)
    for a, b in zip(*((y if isinstance(y, tuple) else (y,)) for y in (found, want)), strict=True):
        assert torch.allclose(a, b)


def test_the_status_says_that_it_interprets() -> None:
    status = ek.backends()["triton"]
    assert status.available and "TRITON_INTERPRET" in status.reason
