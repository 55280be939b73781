"""Every op once, natively and on Triton, at sizes that compute-sanitizer can watch: uneven ones, so
that every tile has an edge."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.verdicts import described, judge
from tests.ops import cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("namespace", ["effv2", "effv2_triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", cases.OPS)
@torch.no_grad()
def test_an_op(op: str, dtype: torch.dtype, namespace: str, full_precision: None) -> None:
    channels = (3, 24) if op == "stem" else (8, 24)  # for which each kernel is the one that runs
    made = cases.arguments(op, dtype=dtype, channels=channels)
    if op == "stem":
        made["stride"] = [2, 2]
    args = cases.mapped(made, lambda tensor: tensor.cuda())
    found = getattr(getattr(torch.ops, namespace), op).default(*cases.ordered(op, args))
    found = found if isinstance(found, tuple) else (found,)
    engine = cases.engine(op, args, by_name=namespace == "effv2_triton")
    want = cases.plain(op, cases.mapped(made, lambda tensor: tensor.double()))
    for ours, theirs, right in zip(found, cases.plain(op, made), want, strict=True):
        judge(op, engine, described(made), ours.cpu(), theirs, right)
