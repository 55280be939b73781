"""Whole networks on the device, on Triton by name and as "auto" has it; warmed up, captured."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import effv2_kernels as ek
import python_ref
from effv2_kernels.cli import tune
from effv2_kernels.cli.tune_timer import GpuTimer
from effv2_kernels.engines.triton import _launch
from effv2_kernels.launch import tables, targets
from effv2_kernels.launch.triton import search
from tests.gpu.verdicts import judge_over
from tests.support import assert_as_close_as_pytorch, draws, in_float64, randomise

WHY_SKIP = "" if torch.cuda.is_available() else "no CUDA device"
WHY_SKIP = WHY_SKIP or ("" if ek.backends()["triton"].available else ek.backends()["triton"].reason)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(WHY_SKIP), reason=WHY_SKIP or "it runs"),
]


def network(name: str = "efficientnetv2_b0", dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    return randomise(python_ref.create(name, num_classes=100)).eval().to("cuda", dtype)


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["efficientnetv2_b0", "efficientnetv2_s", "efficientnet_b0"])
@torch.no_grad()
def test_a_network_equals_the_reference(
    name: str, dtype: torch.dtype, backend: str, full_precision: None
) -> None:
    model, x = network(name, dtype), torch.randn(8, 3, 129, 160, device="cuda", dtype=dtype)
    report = ek.patch(copy.deepcopy(model), backend=backend, strict=True)
    assert report.coverage > 0.99 and (backend == "auto" or report.backend == backend)
    drawn = draws(model, x, lambda m: ek.patch(m, backend=backend, strict=True))
    judge_over("network", report.backend, f"{name}, 129 x 160", drawn)


@torch.no_grad()
def test_nothing_compiles_after_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "_COMPILED", {})
    model, x = network(), torch.randn(2, 3, 64, 96, device="cuda", dtype=torch.bfloat16)
    ek.patch(model, backend="triton")
    assert ek.warmup(model, [tuple(x.shape)]) == len(_launch._COMPILED) > 10
    known = set(_launch._COMPILED)
    model(x)
    assert set(_launch._COMPILED) == known
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(captured, model(x))


@torch.no_grad()
def test_what_was_taken_once_is_computed_alike_and_all_else_is_still_checked() -> None:
    """From the second forward on, ops are called past the dispatcher and its checks."""
    model, x = network(), torch.randn(2, 3, 64, 96, device="cuda", dtype=torch.bfloat16)
    ek.patch(model)
    first = model(x)
    assert torch.equal(first, model(x))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="effv2::stem"):
            model(x[:, :2])


@torch.no_grad()
def test_compiled_without_a_graph_break() -> None:
    model, x = network(), torch.randn(16, 3, 64, 96, device="cuda", dtype=torch.bfloat16)
    ek.patch(model, backend="triton")
    compiled = torch.compile(model, fullgraph=True)
    reference = in_float64(model, x)
    assert_as_close_as_pytorch(compiled(x), model(x), reference)


def test_tune_measures(tmp_path: Path) -> None:
    target = targets.of_device(torch.device("cuda"))
    found = tune.tasks_of(["efficientnetv2_b0"], [64], [2], torch.bfloat16, target)
    some = dict(list(found.items())[:3])
    path = tables.path_of(target.name, tmp_path)
    outcome = search.search(some, target, GpuTimer(some, target), path, seconds=120, most=4)
    assert outcome.tuned == 3 and not outcome.failed
    assert all(0 < entry.microseconds < 1e5 for entry in tables.read(path))
