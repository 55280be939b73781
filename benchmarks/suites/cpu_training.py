"""A training step on a CPU, eager channels_last and effv2 in turn; and the memory of one."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from effv2_kernels.measuring.timing import Quantiles, paired_ratio, quantiles

from .. import measure, results
from ..catalogue import Entry, find
from ..implementations import WrongOutput
from ..options import Options
from ..quiet import Monitor
from ..results import Row
from . import training
from .cpu import threads

IMPLS = ("eager_nhwc", "effv2")
_CPU = torch.device("cpu")
_ROUNDS = 21
Seconds = tuple[float, float]


def cpu_train(options: Options) -> Iterator[list[Row]]:
    """All cases. Raises quiet.MachineBusy where other processes leave no time to measure."""
    resolution = options.resolution or 128
    for name in options.models or ("efficientnetv2_s",):
        entry = find(name, options.library)
        for dtype in options.dtype or ("float32",):
            for count in (options.threads,) if options.threads else (1, 2):
                for batch in options.batch or (8, 16):
                    title = f"training {entry.title}, batch {batch}, {count} threads, {dtype}"
                    rows = partial(_rows, entry, resolution, batch, count, dtype, options)
                    yield measure.case(title, options, rows)
            pixels = options.resolution or entry.train_resolution
            rows = partial(_peaks, entry, pixels, (options.batch or (8,))[0], dtype)
            yield measure.case(f"memory of {entry.title}, {dtype}", options, rows)


def _peaks(entry: Entry, resolution: int, batch: int, dtype: str) -> Iterator[Row]:
    make = _row(entry, resolution, batch, dtype)
    for impl in IMPLS:
        peak = peak_memory(impl, entry.name, entry.library, resolution, batch, dtype)
        yield make(impl, "peak_resident", "MB", quantiles([peak]))


def _rows(
    entry: Entry, resolution: int, batch: int, count: int, dtype: str, options: Options
) -> Iterator[Row]:
    print(f"training {entry.title}: checking, then timing", file=sys.stderr)
    model = training.trainable(entry)
    with threads(count):
        try:
            training.check("effv2", model, resolution, dtype, _CPU)
        except WrongOutput as wrong:
            options.failures.append(str(wrong))
            return
        steps = {n: training.make_step(n, model, resolution, batch, dtype, _CPU) for n in IMPLS}
        monitor = Monitor() if options.quiet else None
        found = _interleaved(steps, options.rounds or _ROUNDS, monitor)
        # Made here, where the number of threads is what was measured.
        make = _row(entry, resolution, batch, dtype)
    for i, clock in enumerate(("step", "process")):
        for impl, samples in found.items():
            yield make(impl, f"{clock}_ms", "ms", quantiles(1e3 * one[i] for one in samples))
        pair = ([one[i] for one in found[impl]] for impl in IMPLS)
        ratio = paired_ratio(*pair)
        suffix = "" if clock == "step" else "_process"
        yield make("effv2", f"speedup{suffix}_vs_eager_nhwc", "x", ratio)


def _row(
    entry: Entry, resolution: int, batch: int, dtype: str
) -> Callable[[str, str, str, Quantiles], Row]:
    return results.maker(
        _CPU,
        suite="cpu_train",
        case=f"{entry.library} {entry.name}",
        batch=batch,
        resolution=resolution,
        dtype=dtype,
    )


def _interleaved(
    steps: dict[str, Callable[[], object]], rounds: int, monitor: Monitor | None
) -> dict[str, list[Seconds]]:
    """Seconds of the clock and of the process, of each step in each round; the order alternates."""
    found: dict[str, list[Seconds]] = {name: [] for name in steps}
    for step in (*steps.values(), *steps.values()):
        step()
    names = list(steps)
    if monitor is not None:
        monitor.start()
    while len(found[names[0]]) < rounds:
        one = {name: _both_clocks(steps[name]) for name in names}
        names.reverse()
        if monitor is not None and monitor.disturbed():
            continue
        for name, seconds in one.items():
            found[name].append(seconds)
    return found


def _both_clocks(step: Callable[[], object]) -> Seconds:
    clock, process = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - clock, time.process_time() - process


def peak_memory(
    name: str, model: str, library: str, resolution: int, batch: int, dtype: str
) -> float:
    """MB that a new process takes at most (its resident set, PyTorch and weights included) in two
    training steps on a CPU. Linux only."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_of_this_process, (name, model, library, resolution, batch, dtype))


def _peak_of_this_process(
    name: str, model: str, library: str, resolution: int, batch: int, dtype: str
) -> float:
    network: nn.Module = training.trainable(find(model, library))
    step = training.make_step(name, network, resolution, batch, dtype, _CPU)
    del network
    step()
    step()
    # Not getrusage's, which starts from what the parent had when this process was made.
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) / 1024
