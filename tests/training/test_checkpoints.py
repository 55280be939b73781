"""Checkpoints: what is computed again moves buffers and draws numbers as it does unpatched."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import effv2_kernels as ek
from tests.training.compare import step
from tests.training.small import (
    LIBRARIES,
    assert_same,
    assert_steps_as,
    images,
    network,
    our_ops,
    patched,
)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("part", ["whole", "block"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_checkpoints_move_buffers_twice(library: str, part: str, reentrant: bool) -> None:
    """As unpatched: once in the forward, once where it is computed again."""
    results = []
    plain = network(library, drop_path=0.5)
    for model in (plain, patched(plain)):
        run = model
        if part == "block":
            blocks = [m for m in model.modules() if getattr(m, "drop_path", None) is not None]
            blocks = blocks or [m for m in model.modules() if hasattr(m, "stochastic_depth")]
            _checkpointed(blocks[2], reentrant)
        else:
            run = _Checkpointed(model, reentrant)
        results.append(step(run, images()))
    found, right = results[1], results[0]
    assert_same(found, right)
    counts = {int(v) for name, v in right.items() if name.endswith("num_batches_tracked")}
    assert counts == ({2} if part == "whole" else {1, 2})


class _Checkpointed(nn.Module):
    def __init__(self, inside: nn.Module, reentrant: bool):
        super().__init__()
        self.inside = inside
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inside, x, use_reentrant=self.reentrant)


def _checkpointed(module: nn.Module, reentrant: bool) -> None:
    """As its parent calls it."""
    forward = module.forward
    module.forward = lambda x: checkpoint(forward, x, use_reentrant=reentrant)


@pytest.mark.parametrize("when", ["before the patch", "after it"])
@pytest.mark.parametrize("library", ["timm", "python_ref"])
def test_checkpointing_of_the_library(library: str, when: str) -> None:
    """timm's moves buffers twice, python_ref's once."""
    plain = network(library, drop_path=0.5)
    if when == "before the patch":
        plain.set_grad_checkpointing()
    ours = patched(plain)
    for model in (plain, ours):
        model.set_grad_checkpointing()
    assert_steps_as(plain, ours, images(), steps=2)
    x = images().requires_grad_()  # timm's is not recomputed for an input that needs none
    ran = our_ops(lambda: ours(x).sum().backward())
    trained = [name for name in ran if not name.endswith("backward")]
    assert len(trained) == 8 + 6 and len(ran) == len(trained) + 8
    ek.unpatch(ours)
    assert not our_ops(lambda: ours(x))
