"""A compiled training compiles again for its second size, and never after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import effv2_kernels as ek
from tests.recipe import small
from tests.training.few_blocks import FEW, python_ref_network


@pytest.mark.slow
def test_no_graph_after_the_second_size() -> None:
    """Sizes, batches and dropout change three times."""
    torch._dynamo.reset()
    of = small.schedule(4.0, stages=4)
    graphs: list[int] = []
    trainer = small.trainer(
        small.recipe(epochs=4.0, device_batch=64, compile=True, evaluate_every=2.0),
        of=of.with_larger_batches(),
        prepare=ek.patch,
        network=lambda: python_ref_network(FEW[:1]),
    )
    plain = trainer._step

    def counted(*arguments: Any) -> torch.Tensor:
        found = plain(*arguments)
        graphs.append(counters["stats"]["unique_graphs"])
        return found

    counters.clear()
    trainer._step = counted
    result = trainer.run()
    stages = [step.stage for step in trainer.stream.steps()]
    assert result.finished and len(set(stages)) == 4
    assert graphs[0] == 1 and graphs[stages.index(1)] == 2
    assert graphs[-1] == 2, dict(zip(stages, graphs, strict=True))
