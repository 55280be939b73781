"""What the compilers say of every kernel: registers, spills, shared memory, tensor-core
instructions. No GPU is needed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from ..options import Options
from ..results import Row

TABLES = ("cuda", "triton")


def static(options: Options) -> Iterator[list[Row]]:
    for name in TABLES:
        if options.budget.allows(f"static table of the {name} kernels"):
            yield importlib.import_module(f"benchmarks.static.{name}").rows()
