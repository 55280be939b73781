"""What the GPU tests say of each result: how far it is from float64, beside PyTorch's own error.

``judge`` asserts, and notes what it saw whether it passed or not; ``conftest.py`` carries the notes
to the process that prints and keeps them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support import assert_as_close_as_pytorch, passes, relative_error

#: Of the test that is running. ``conftest.py`` empties it before each.
NOTES: list[dict[str, Any]] = []


def judge(op: str, engine: str, case: str, found: Tensor, eager: Tensor, reference: Tensor) -> None:
    """One output of ``op`` by ``engine`` may err at most twice what PyTorch errs.

    case: shapes, for a reader; eager: PyTorch's output in the same dtype; reference: in float64. A
    float32 result of operands that may be rounded is noted as "tf32".
    """
    error, allowed = relative_error(found, reference), relative_error(eager, reference)
    rounded = engine == "triton" and found.dtype == torch.float32
    rounded = rounded and torch.backends.cudnn.allow_tf32
    dtype = "tf32" if rounded else str(found.dtype).removeprefix("torch.")
    note = {"op": op, "engine": engine, "dtype": dtype, "case": case}
    NOTES.append({**note, "error": error, "pytorch": allowed, "passed": passes(error, allowed)})
    assert_as_close_as_pytorch(found, eager, reference)


def described(args: dict[str, Any]) -> str:
    """Arguments of an op on one line: shapes of the tensors, all else but what is off."""
    words = []
    for name, value in args.items():
        if isinstance(value, Tensor):
            words.append(f"{name} {'x'.join(map(str, value.shape))}")
        elif value not in (None, False, "none"):
            words.append(f"{name} {value}")
    return ", ".join(words)
