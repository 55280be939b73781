"""Two processes with DDP, FSDP2, and the same numbers in every run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import effv2_kernels as ek
from tests.training import ranks
from tests.training.few_blocks import NETWORKS, assert_same, images, step

STEPS = 3
TRAINED = {"conv_bn_act_train", "fused_mbconv_train", "mbconv_train"}
OPS = TRAINED | {f"{name}_backward" for name in TRAINED}
#: In float64, where a program that computes the same differs from another by 1e-13.
TOLERANCE = 1e-9


def trained(model: nn.Module, run: nn.Module, rank: int = 0) -> dict[str, Any]:
    """After STEPS: the gradients of each step, weights, buffers, and the ops of ours that ran."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    gradients, like = [], next(model.parameters())
    with torch.autograd.profiler.profile() as seen:
        for number in range(STEPS):
            x = images(4, 32, 10 * rank + number, like.dtype)
            gradients.append(step(model, x, run, seed=10 * rank + number).gradients)
            del gradients[-1]["images"]
            optimizer.step()
    return {
        "gradients": gradients,
        "weights": {n: p.detach().clone() for n, p in model.named_parameters()},
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
        "ops": {e.name[7:] for e in seen.function_events if e.name.startswith("effv2::")},
    }


def network(library: str, patched: bool, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[library]().to(dtype).train()
    if patched:
        ek.patch(model)
    return model


def ddp(rank: int, libraries: tuple[str, ...]) -> dict[tuple[str, bool], dict[str, Any]]:
    found = {}
    for library in libraries:
        for patched in (False, True):
            model = network(library, patched)
            if rank:  # DDP sends those of rank 0
                nn.init.normal_(next(model.parameters()))
            found[library, patched] = trained(model, DistributedDataParallel(model), rank)
    return found


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Each with its own images; gradients are averaged, buffers are those of the first."""
    pytest.importorskip("timm", reason="timm is an extra")
    libraries = tuple(NETWORKS)
    of_ranks = ranks.run_group(ddp, tmp_path / "ddp", libraries, limit=200)
    for library in libraries:
        for of_rank in of_ranks:
            found, expected = of_rank[library, True], of_rank[library, False]
            assert found["ops"] == OPS and not expected["ops"]
            for ours, theirs in zip(found["gradients"], expected["gradients"], strict=True):
                assert_same(ours, theirs, TOLERANCE)
            assert_same(found["weights"], expected["weights"], TOLERANCE)
            assert_same(found["buffers"], expected["buffers"], TOLERANCE)
        first, second = (of_rank[library, True] for of_rank in of_ranks)
        for one, other in zip(first["gradients"], second["gradients"], strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
        # Were nothing averaged, the first process would have trained as if it were alone.
        model = network(library, True)
        alone = trained(model, model)
        with pytest.raises(AssertionError):
            assert_same(first["weights"], alone["weights"], TOLERANCE)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    with ranks.group(tmp_path, 0, 1, limit=30):
        yield


def blocks_of(model: nn.Module) -> list[nn.Module]:
    stages = model.stages if hasattr(model, "stages") else model.blocks
    return [block for stage in stages for block in stage]


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (1,))
    for block in blocks_of(model):
        fsdp.fully_shard(block, mesh=mesh)
    return fsdp.fully_shard(model, mesh=mesh)


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in tensors.items()}


@pytest.mark.parametrize("library", NETWORKS)
@pytest.mark.parametrize("order", ["patched first", "sharded first"])
def test_fsdp(order, library, one_process):
    """Patched first, our ops take the gathered weights. Sharded first, the modules are of FSDP's
    own classes, which may compute otherwise: they are not patched, and train as they were."""
    plain = network(library, False)
    model = network(library, order == "patched first")
    sharded(model)
    if order == "sharded first":
        report = ek.patch(model)
        assert not report.patched, report
    expected = trained(plain, plain)
    found = trained(model, model)
    assert found["ops"] == (OPS if order == "patched first" else set())
    for ours, theirs in zip(found["gradients"], expected["gradients"], strict=True):
        assert_same(whole(ours), theirs, TOLERANCE)
    assert_same(whole(found["weights"]), expected["weights"], TOLERANCE)
    assert_same(whole(found["buffers"]), expected["buffers"], TOLERANCE)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("library", NETWORKS)
def test_two_runs_are_the_same(library, deterministic):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        runs = []
        for _ in range(2):
            model = network(library, True, torch.float32)
            runs.append(trained(model, model))
    finally:
        torch.use_deterministic_algorithms(before)
    first, second = runs
    assert first["ops"] == OPS
    for what in ("weights", "buffers"):
        assert all(torch.equal(t, second[what][n]) for n, t in first[what].items())
    for one, other in zip(first["gradients"], second["gradients"], strict=True):
        assert all(torch.equal(t, other[n]) for n, t in one.items())
