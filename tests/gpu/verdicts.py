"""What the GPU tests say of each result: how far it is from float64, beside PyTorch's own error.

``judge`` asserts, and notes what it saw whether it passed or not; ``conftest.py`` carries the notes
to the process that prints and keeps them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.support import (
    Draw,
    assert_as_close_over,
    passes,
    relative_error,
    rms,
)

#: Of the test that is running. ``conftest.py`` empties it before each.
NOTES: list[dict[str, Any]] = []


def judge(op: str, engine: str, case: str, found: Tensor, eager: Tensor, reference: Tensor) -> None:
    """One output of ``op`` by ``engine`` may err at most twice what PyTorch errs.

    case: shapes, for a reader; eager: PyTorch's output in the same dtype; reference: in float64. A
    float32 result of operands that may be rounded is noted as "tf32".
    """
    error, allowed = relative_error(found, reference), relative_error(eager, reference)
    passed = passes(error, allowed)
    _note(op, engine, case, found.dtype, error, allowed, passed)
    assert passed, f"error {error:.2e}, PyTorch's {allowed:.2e}"


def judge_over(op: str, engine: str, case: str, draws: Iterable[Draw]) -> None:
    """The same of a whole network, by ``assert_as_close_over``; noted are the pooled errors, those
    of the worst call of each draw."""
    errors, allowed, dtypes = [], [], []

    def seen() -> Iterator[Draw]:
        for found, eager, reference in draws:
            errors.append(max(relative_error(one, reference) for one in found))
            allowed.append(relative_error(eager, reference))
            dtypes.append(eager.dtype)
            yield found, eager, reference

    passed = False
    try:
        assert_as_close_over(seen())
        passed = True
    finally:
        if dtypes:
            _note(op, engine, case, dtypes[0], rms(errors), rms(allowed), passed)


def _note(
    op: str,
    engine: str,
    case: str,
    dtype: torch.dtype,
    error: float,
    allowed: float,
    passed: bool,
) -> None:
    rounded = engine == "triton" and dtype == torch.float32
    rounded = rounded and torch.backends.cudnn.allow_tf32
    name = "tf32" if rounded else str(dtype).removeprefix("torch.")
    note = {"op": op, "engine": engine, "dtype": name, "case": case}
    NOTES.append({**note, "error": error, "pytorch": allowed, "passed": passed})


def described(args: dict[str, Any]) -> str:
    """Arguments of an op on one line: shapes of the tensors, all else but what is off."""
    words = []
    for name, value in args.items():
        if isinstance(value, Tensor):
            words.append(f"{name} {'x'.join(map(str, value.shape))}")
        elif name.endswith("norm"):  # its vectors are as long as the weight says
            words.append(f"{name} {len(value)}")
        elif value not in (None, False, "none"):
            words.append(f"{name} {value}")
    return ", ".join(words)
