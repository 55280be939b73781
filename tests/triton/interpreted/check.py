"""The rule of DESIGN section 6, for an op that runs in the interpreter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from effv2_kernels import ops
from tests.ops.cases import NORMS, Arguments, mapped, ordered, plain, tensors
from tests.ops.test_values import storage_bytes
from tests.support import assert_as_close_as_pytorch

# What the interpreter multiplies rightly: its bfloat16 product is not one.
BY_NAME = ops.Engines(ops.OPS, "cpu", lambda op, chosen: is_tritons(chosen.engine), by_name=True)
DTYPES = (torch.float32, torch.float16)


def vectors(seed: int) -> dict[str, Any]:
    """What a convolution has beside its weight, for ``arguments``: of 12 seeds in a row each has
    another of what there is."""
    return {
        "norm": NORMS[seed % 3],
        "bias": seed % 2 == 0,
        "bias_dtype": torch.float32 if seed // 2 % 2 else None,
    }


def is_tritons(engine: ops.Engine) -> None:
    assert engine.name in ("triton", "two ops"), f"{engine.name} was chosen"


def run(op: str, args: Arguments) -> tuple[Tensor, ...]:
    found = getattr(BY_NAME, op).default(*ordered(op, args))
    return found if isinstance(found, tuple) else (found,)


def check(op: str, args: Arguments) -> tuple[Tensor, ...]:
    """Right by the rule, in the layout that was promised, and no argument written."""
    before = [storage_bytes(t) for t in tensors(args)]
    found = run(op, args)
    for old, tensor in zip(before, tensors(args), strict=True):
        assert torch.equal(old, storage_bytes(tensor)), "an argument was written"
    reference = plain(op, mapped(args, torch.Tensor.double))
    for output, theirs, right in zip(found, plain(op, args), reference, strict=True):
        assert output.shape == right.shape and output.dtype == theirs.dtype
        last = torch.channels_last if output.dim() == 4 else torch.contiguous_format
        assert output.stride() == torch.empty_like(output, memory_format=last).stride()
        if right.numel():
            assert_as_close_as_pytorch(output, theirs, right)
    return found
