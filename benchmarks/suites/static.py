"""What the compilers say of every kernel: registers, spills, shared memory, tensor-core
instructions. No GPU is needed."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

from effv2_kernels import _native
from effv2_kernels.engines import triton as triton_ops

from ..options import Options
from ..results import Row


def static(options: Options) -> Iterator[list[Row]]:
    """The native build of this checkout, then the Triton kernels, which takes a quarter of an hour
    and is not begun under a time budget."""
    if not _native.load().loaded:
        print(f"not tabled: CUDA kernels: {_native.load().reason}", file=sys.stderr)
    elif options.budget.allows("table of the CUDA kernels"):
        from ..static import cuda

        yield cuda.rows()
    if triton_ops.missing():
        print(f"not tabled: Triton kernels: {triton_ops.missing()}", file=sys.stderr)
    elif options.budget.left() < math.inf:
        print("not tabled: Triton kernels: that takes longer than a budget", file=sys.stderr)
    else:
        from ..static import triton

        yield triton.rows()
