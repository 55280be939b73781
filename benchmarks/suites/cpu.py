"""A whole network on the CPU: eager PyTorch in both layouts, ``torch.compile`` and effv2, two at a
time."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from effv2_kernels.measuring.timing import paired_ratio, quantiles

from .. import implementations, measure, pairs, results
from ..catalogue import Entry, find
from ..implementations import EAGER, INFERENCE, WrongOutput
from ..options import Options
from ..quiet import Monitor
from ..results import Row
from . import networks

DEFAULT_IMPLS = ("eager_nchw", "eager_nhwc", "compile_default", "effv2")
_ROUNDS = 41
_HURRIED_ROUNDS = 5  # under a time budget
_CPU = torch.device("cpu")


def cpu(options: Options) -> Iterator[list[Row]]:
    """All cases. Raises quiet.MachineBusy where other processes leave no time to measure."""
    resolution = options.resolution or 224
    draw = torch.Generator().manual_seed(0)
    with threads(options.threads or torch.get_num_threads()):
        for name in options.models or ("efficientnetv2_s",):
            entry = find(name, options.library)
            model = networks.prepared(entry, resolution, _CPU)
            for dtype in options.dtype or ("float32", "bfloat16"):
                for batch in options.batch or (1, 8):
                    title = f"{entry.title}, batch {batch}, {dtype}"
                    images = torch.randn(batch, 3, resolution, resolution, generator=draw)
                    rows = partial(_rows, entry, model, images, dtype, options)
                    yield measure.case(title, options, rows)


def _rows(
    entry: Entry, model: nn.Module, images: Tensor, dtype: str, options: Options
) -> Iterator[Row]:
    kind, context = implementations.precision(dtype, _CPU)
    print(f"{entry.title}: checking, then timing", file=sys.stderr)
    with torch.inference_mode():
        reference = copy.deepcopy(model).double()(images.double())
    model, images = copy.deepcopy(model).to(kind), images.to(kind)
    names = implementations.known((EAGER, *(options.impl or DEFAULT_IMPLS)), INFERENCE)
    calls = {name: implementations.inference(name, model, images) for name in names}
    monitor = Monitor() if options.quiet else None
    hurried = options.budget.left() < math.inf
    rounds = options.rounds or (_HURRIED_ROUNDS if hurried else _ROUNDS)
    try:
        with torch.inference_mode(), context:
            found = pairs.measure(calls, reference, EAGER, rounds, _CPU, monitor)
    except WrongOutput as wrong:
        print(wrong, file=sys.stderr)
        options.failures.append(str(wrong))
        return
    make = results.maker(
        _CPU,
        suite="cpu",
        case=f"{entry.library} {entry.name}",
        batch=len(images),
        resolution=images.shape[-1],
        dtype=dtype,
    )
    for impl in calls:
        latencies = [value for seconds in found.values() for value in seconds.get(impl, ())]
        yield make(impl, "latency_ms", "ms", quantiles(1000 * value for value in latencies))
    for (baseline, impl), seconds in found.items():
        ratio = paired_ratio(seconds[baseline], seconds[impl])
        yield make(impl, f"speedup_vs_{baseline}", "x", ratio)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
