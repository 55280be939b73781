"""Real CUDA graphs: tests/patching/test_capture.py has all that needs no GPU."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import nn

import effv2_kernels as ek
import python_ref
from tests.support import randomise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def model() -> nn.Module:
    network = randomise(python_ref.create("b0", num_classes=10)).eval().cuda()
    ek.patch(network)
    return network


@pytest.fixture(autouse=True)
def no_fall_back():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="effv2_kernels.patching.capture")
        yield


@torch.no_grad()
def test_replays_equal_the_model(model: nn.Module) -> None:
    run = ek.capture(model, torch.randn(2, 3, 64, 64, device="cuda"))
    for shape in [(2, 3, 64, 64), (1, 3, 65, 78), (2, 3, 64, 64)]:
        x = torch.randn(shape, device="cuda")
        torch.testing.assert_close(run(x), model(x), rtol=0, atol=0)


@torch.no_grad()
def test_a_changed_weight_is_seen(model: nn.Module) -> None:
    x = torch.randn(2, 3, 64, 64, device="cuda")
    run = ek.capture(model, x)
    before = run(x)
    for parameter in model.parameters():
        parameter.mul_(1.01)
    after = run(x)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, model(x), rtol=0, atol=0)


@torch.no_grad()
def test_a_graph_of_autocast_outlives_its_context(model: nn.Module) -> None:
    x = torch.randn(2, 3, 64, 64, device="cuda")
    ek.unpatch(model.stages)  # blocks of both kinds: those that autocast casts for, and ours
    with torch.autocast("cuda", torch.bfloat16):
        run = ek.capture(model, x)
        first = run(x)
    junk = [torch.full((1 << 20,), torch.nan, device="cuda") for _ in range(64)]
    with torch.autocast("cuda", torch.bfloat16):
        again = run(x)
    del junk
    torch.testing.assert_close(again, first, rtol=0, atol=0)


@torch.no_grad()
def test_a_failed_capture_leaves_everything_as_it_was(model: nn.Module) -> None:
    class Synchronises(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.sum())

    x, stream = torch.randn(1, 3, 8, 8, device="cuda"), torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="the capture failed"):
        run = ek.capture(Synchronises().eval(), x)
    assert torch.cuda.current_stream() == stream
    torch.testing.assert_close(run(x), x * x.sum())
    graph = ek.capture(model, torch.randn(1, 3, 64, 64, device="cuda"))
    assert not graph.reasons


@torch.no_grad()
def test_threads_and_side_streams(model: nn.Module) -> None:
    xs = [torch.randn(1, 3, 64, 64, device="cuda") for _ in range(4)]
    expected = [model(x) for x in xs]
    run = ek.capture(model, xs[0])
    torch.cuda.synchronize()
    wrong: list[int] = []

    def work(i: int) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            outputs = [run(xs[i]) for _ in range(20)]
        stream.synchronize()
        wrong.extend(i for y in outputs if not torch.equal(y, expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
