"""Runs an op of ``effv2_kernels.engines.native`` and checks what comes out by DESIGN section 6."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.ops.cases import Arguments, Geometry, arguments, mapped, ordered, plain
from tests.support import assert_as_close_as_pytorch


def check(implementation: Callable, op: str, geometry: Geometry, **options: Any) -> list:
    """Runs it on random arguments, as ``tests.ops.cases.arguments`` makes them of the options,
    checks its outputs and returns them."""
    return check_of(
        implementation, op, arguments(op, geometry, **{"layout": "channels_last", **options})
    )


def check_of(implementation: Callable, op: str, args: Arguments) -> list:
    found = implementation(*ordered(op, args))
    found = list(found) if isinstance(found, tuple) else [found]
    reference = plain(op, mapped(args, torch.Tensor.double))
    eager = plain(op, args)
    for output, theirs, right in zip(found, eager, reference, strict=True):
        assert output.shape == right.shape and output.dtype == theirs.dtype
        if right.numel():
            assert_as_close_as_pytorch(output, theirs, right)
    return found
