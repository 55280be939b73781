"""How ``csrc/depthwise.cu`` is laid out: its header says what the numbers mean.

The choice is by a model of the busiest multiprocessor: clocks of instruction issue, of its slowest
warp, and of memory. Its constants are from the compiled code and from data sheets. What it chose
for V2-S at batch 128 reached 71 to 90 % of an H200's copy bandwidth; other layouts were not tried.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .. import rates
from ..targets import Target

THREADS = 128  # of a block, at most
WARP = 32
CLUSTERS = (2, 4, 8)  # blocks; sizes that every GPU with clusters takes
# Instructions an output, by the window and the stride: the machine code of SiLU in bfloat16.
INSTRUCTIONS = {
    **{(3, 1): 17, (3, 2): 23, (5, 1): 37, (5, 2): 46},
    **{(7, 1): 62, (7, 2): 72},
}
# What else a strip costs a warp: its addresses, and where it is the first its weights.
STRIP_INSTRUCTIONS = 400
# Instructions a clock of a multiprocessor with many warps, and of a warp that is alone.
ISSUE = 3.0
ALONE = 0.4
# Clocks until the first rows are there; of a cluster's barriers; of a second launch, and what it
# takes for each part, of which a thread adds up those of a channel one after another.
FIRST_ROWS = 1200
CLUSTER = 1000
LAUNCH = 4000
LAUNCH_PART = 150
# Half a line of 128 bytes, by which neighbouring lanes then read, reaches less of that.
HALF_LINE = 1.05
# How much of what is not the limit is not hidden behind it.
EXPOSED = 0.2


@dataclass(frozen=True)
class DepthwiseLaunch:
    """The fields of ``DepthwiseLaunch`` in csrc/kernels.h."""

    channel_threads: int
    strip_threads: int
    rows: int
    parts: int
    cluster: bool

    def integers(self) -> list[int]:
        return [self.channel_threads, self.strip_threads, self.rows, self.parts, int(self.cluster)]


def channels_of_a_thread(channels: int, kernel: int, dtype: torch.dtype) -> int:
    """``kDepthwiseWidth`` of csrc/common/depthwise.cuh; 1 where channels do not fill 16 bytes."""
    widest = 16 // dtype.itemsize
    if channels % widest:
        return 1
    return 4 if kernel == 3 else 2


def columns_of_a_strip(kernel: int, width: int) -> int:
    """``kDepthwiseColumns`` of csrc/common/depthwise.cuh."""
    return 4


@functools.lru_cache(maxsize=4096)
def choose(
    n: int,
    channels: int,
    out_size: tuple[int, int],
    kernel: int,
    stride: int,
    dtype: torch.dtype,
    squeeze: bool,
    target: Target,
) -> DepthwiseLaunch:
    """The layout for n images of (channels, out_size) outputs."""
    problem = _Problem(n, channels, *out_size, kernel, stride, dtype, squeeze)
    clusters = squeeze and target.capability >= (9, 0)
    # Among equals the first: whole lines, long strips, few parts.
    return min(_layouts(problem, clusters), key=lambda layout: _clocks(problem, layout, target))


@dataclass(frozen=True)
class _Problem:
    n: int
    channels: int
    height: int  # of the output
    columns: int
    kernel: int
    stride: int
    dtype: torch.dtype
    squeeze: bool

    @property
    def width(self) -> int:
        return channels_of_a_thread(self.channels, self.kernel, self.dtype)

    @property
    def across(self) -> int:
        """Strips beside each other."""
        return -(-self.columns // columns_of_a_strip(self.kernel, self.width))

    def strips(self, rows: int) -> int:
        return self.across * -(-self.height // rows)


def warps_of_a_multiprocessor(kernel: int, dtype: torch.dtype) -> int:
    """That have registers: ``kBlocks`` of csrc/depthwise.cu, of 4 warps."""
    return 8 if kernel == 7 or dtype.itemsize == 4 else 12


def _line(problem: _Problem) -> int:
    """Lanes along the channels that make a line of 128 bytes."""
    return min(128 // (problem.width * problem.dtype.itemsize), WARP)


def _layouts(problem: _Problem, clusters: bool) -> Iterator[DepthwiseLaunch]:
    line = _line(problem)
    splits = {-(-problem.height // parts) for parts in range(1, problem.height + 1)}
    for channel_threads in (line, 2 * line, line // 2):
        # Whole warps.
        unit = max(WARP // channel_threads, 1)
        for strip_threads in range(unit, THREADS // channel_threads + 1, unit):
            for rows in sorted(splits, reverse=True):
                enough = -(-problem.strips(rows) // strip_threads)
                for parts in _parts(enough, problem.squeeze, clusters):
                    cluster = clusters and parts in CLUSTERS
                    yield DepthwiseLaunch(channel_threads, strip_threads, rows, parts, cluster)


def _parts(enough: int, squeeze: bool, clusters: bool) -> list[int]:
    """In how many blocks an image may be split, for the same channels; ``enough`` give each thread
    one strip. With squeeze fewer do, each going on to further strips."""
    if not squeeze:
        return [enough]
    return sorted(
        {1, enough} | {parts for parts in CLUSTERS if parts < (2 * enough if clusters else enough)}
    )


def _clocks(problem: _Problem, layout: DepthwiseLaunch, target: Target) -> float:
    """Of the busiest multiprocessor."""
    kernel, stride, width = problem.kernel, problem.stride, problem.width
    lanes, strip_threads = layout.channel_threads, layout.strip_threads
    channel_blocks = -(-problem.channels // (lanes * width))
    blocks = problem.n * channel_blocks * layout.parts
    own_blocks = -(-blocks // target.multiprocessors)
    warps = lanes * strip_threads // WARP
    resident = max(warps_of_a_multiprocessor(kernel, problem.dtype) // warps, 1)

    # A strip walks down the rows of its windows; the first ones finish no output.
    steps = layout.rows + (kernel - 1) // stride
    columns = columns_of_a_strip(kernel, width)
    of_strip = steps * columns * width * INSTRUCTIONS[kernel, stride] + STRIP_INSTRUCTIONS
    strips = -(-problem.strips(layout.rows) // layout.parts)  # of a block
    rounds = -(-strips // strip_threads)
    # Warps of the last round in which no lane has a strip do nothing.
    last = strips - (rounds - 1) * strip_threads
    busy = (rounds - 1) * warps + -(-last * lanes // WARP)
    issue = own_blocks * busy * of_strip / ISSUE
    slowest = -(-own_blocks // resident) * rounds * (of_strip / ALONE + FIRST_ROWS)

    rate = rates.of(target)
    rows_in = min((layout.rows - 1) * stride + kernel, problem.height * stride)
    read = strips / problem.across * rows_in * problem.columns * stride
    if strip_threads < problem.across:
        # What neighbours share is no longer in L1 when the second comes.
        out_of_l2 = rates.COPY * rate.memory / rate.l2  # of the time of a read from memory
        read *= 1 + min(out_of_l2, 1.0) * (kernel - stride) / (columns * stride)
    written = strips / problem.across * layout.rows * problem.columns
    channels = problem.channels / channel_blocks  # on average
    bytes_of_block = (read + written) * channels * problem.dtype.itemsize
    memory = own_blocks * bytes_of_block / (rates.COPY * rate.memory)
    if lanes < _line(problem):
        memory *= HALF_LINE

    units = (issue, slowest, memory)
    clocks = max(units) + EXPOSED * (sum(units) - max(units))
    if problem.squeeze and layout.parts > 1:
        clocks += CLUSTER if layout.cluster else LAUNCH + LAUNCH_PART * layout.parts
    return clocks
