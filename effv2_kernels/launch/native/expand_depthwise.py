"""Whether ``expand_depthwise`` runs fused (csrc/expand_depthwise.cu) or as its two ops, and how the
fused kernel is laid out.

Both are chosen by a model that counts, for one multiprocessor, clocks of tensor cores, instruction
issue and memory. The two ops were measured on an H200, each at V2-S's shapes and batch 128, and the
model is within 15 % of them there; the fused kernel was measured as a part of V2-S only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .. import rates
from ..targets import Target
from .depthwise import channels_of_a_thread, columns_of_a_strip

THREADS = 128
BLOCKS = 2  # of a multiprocessor, where their shared memory fits
CHUNKS = (64, 32)
PAD = 8  # elements by which rows in shared memory are longer
RESERVED = 1024  # bytes of shared memory that a block costs beside its own
MOST_IN_CHANNELS = 1024
SIDES = range(4, 33)  # outputs along a side of a tile, unless it is the whole map
LAUNCH_CLOCKS = 4000.0
EPILOGUE = 10  # instructions for an expanded element, and for an output beside its multiplications
# Of the whole of V2-S at batch 128 on an H200, its other launches, measured one by one, leave for
# the eight that ran fused 1.6 to 2.7 times what is counted here.
SLOWER = 2.0
# Of what a copy reaches, a depthwise kernel; and of the tensor cores' rate, the products of a 1x1
# expansion, which do not overlap with its loads and stores.
DEPTHWISE = {1: 0.8, 2: 0.95}  # by the stride
EXPANSION = 0.5
# How much of the work of the less busy units two blocks cannot hide behind the busiest.
EXPOSED = 0.25


@dataclass(frozen=True)
class ExpandDepthwiseLaunch:
    """The fields of ``ExpandDepthwiseLaunch`` in csrc/kernels.h."""

    tile_height: int
    tile_width: int
    rows: int
    chunk: int
    chunks: int

    def integers(self) -> list[int]:
        return [self.tile_height, self.tile_width, self.rows, self.chunk, self.chunks]


@dataclass(frozen=True)
class Problem:
    """n images of (in_channels, size), expanded to ``channels`` and convolved to out_size."""

    n: int
    in_channels: int
    channels: int
    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: int
    stride: int
    dtype: torch.dtype

    @property
    def depth(self) -> int:
        """in_channels, filled up to what one mma takes."""
        return -(-self.in_channels // 16) * 16

    @property
    def takes(self) -> bool:
        """Whether the kernel can do it at all."""
        return (
            self.dtype in (torch.float16, torch.bfloat16)
            and self.kernel in (3, 5)
            and self.stride in (1, 2)
            and self.in_channels % 8 == 0
            and self.channels % 8 == 0
            and 0 < self.in_channels <= MOST_IN_CHANNELS
        )


@functools.lru_cache(maxsize=1024)
def choose(problem: Problem, target: Target) -> ExpandDepthwiseLaunch | None:
    """The layout of the fused kernel, or None where the two ops are expected to be faster."""
    found = fused(problem, target)
    if found is None or found[0] > separate_clocks(problem, target):
        return None
    return found[1]


def fused(
    problem: Problem, target: Target, chunks: Sequence[int] = CHUNKS
) -> tuple[float, ExpandDepthwiseLaunch] | None:
    """(clocks, layout) of the best fused form; None where none fits into shared memory."""
    if not problem.takes:
        return None
    layouts = [layout for layout in _layouts(problem, target) if layout.chunk in chunks]
    if not layouts:
        return None
    return min(
        ((_clocks(problem, layout, target), layout) for layout in layouts), key=lambda pair: pair[0]
    )


def shared_bytes(problem: Problem, layout: ExpandDepthwiseLaunch) -> int:
    """``Layout`` of csrc/expand_depthwise.cu."""
    pixels, _ = _pixels(problem, layout)
    width = channels_of_a_thread(layout.chunk, problem.kernel, problem.dtype)
    strip_threads = THREADS // (layout.chunk // width)
    hidden = max(2 * pixels * (layout.chunk + PAD), 4 * layout.chunk * strip_threads)
    return 2 * (pixels + layout.chunk) * (problem.depth + PAD) + hidden + 8 * layout.chunk


def separate_clocks(problem: Problem, target: Target) -> float:
    """conv_bias_act and depthwise_bias_act one after the other."""
    pixels = problem.n * problem.size[0] * problem.size[1]
    outputs = problem.n * problem.out_size[0] * problem.out_size[1]
    expanded = 2 * pixels * problem.channels
    rate = _memory_rate(expanded, target)
    written = 2 * pixels * problem.in_channels + expanded
    products = pixels * problem.in_channels * problem.channels
    convolution = products / (EXPANSION * rates.of(target).tensor) + written / rate
    depthwise = (expanded + 2 * outputs * problem.channels) / (DEPTHWISE[problem.stride] * rate)
    return (convolution + depthwise) / target.multiprocessors + LAUNCH_CLOCKS


def _memory_rate(bytes_between: int, target: Target) -> float:
    """Bytes a clock and multiprocessor; a tensor that stays in L2 is neither written nor read."""
    rate = rates.of(target)
    return rate.l2 if 2 * bytes_between < target.l2_bytes else rates.COPY * rate.memory


def _layouts(problem: Problem, target: Target) -> Iterator[ExpandDepthwiseLaunch]:
    for chunk in CHUNKS:
        count = -(-problem.channels // chunk)
        for height in _sides(problem.out_size[0]):
            for width in _sides(problem.out_size[1]):
                tile = ExpandDepthwiseLaunch(height, width, 1, chunk, count)
                if shared_bytes(problem, tile) > target.shared_per_block:
                    continue
                for rows in {-(-height // parts) for parts in (1, 2, 3, 4, 6)}:
                    for chunks in {-(-count // parts) for parts in (1, 2, 4, 8, count)}:
                        yield ExpandDepthwiseLaunch(height, width, rows, chunk, chunks)


def _sides(size: int) -> list[int]:
    """Even splits of a side."""
    parts = {-(-size // parts) for parts in range(1, size + 1)}
    return sorted(side for side in parts if side in SIDES or side == size)


def _pixels(problem: Problem, layout: ExpandDepthwiseLaunch) -> tuple[int, float]:
    """Pixels of the image under the largest tile with its halo, and under the average one."""
    most, whole = 1, 1.0
    sides = (layout.tile_height, layout.tile_width)
    for side, size, out in zip(sides, problem.size, problem.out_size, strict=True):
        reach = (side - 1) * problem.stride + problem.kernel
        most *= min(reach, size)
        tiles = -(-out // side)
        # Each cut between two tiles is under the halo of both.
        whole *= size + (tiles - 1) * max(problem.kernel - problem.stride, 0)
    return most, whole


def _clocks(problem: Problem, layout: ExpandDepthwiseLaunch, target: Target) -> float:
    used = shared_bytes(problem, layout) + RESERVED
    resident = min(BLOCKS, target.shared_per_multiprocessor // used)
    if resident == 0:
        return float("inf")
    count = -(-problem.channels // layout.chunk)
    groups = -(-count // layout.chunks)
    height, width = layout.tile_height, layout.tile_width
    tiles = -(-problem.out_size[0] // height) * -(-problem.out_size[1] // width)
    blocks = problem.n * tiles * groups
    _, whole = _pixels(problem, layout)
    pixels = whole / tiles
    padded = -(-pixels // 32) * 32
    rate = rates.of(target)

    matrix = padded * layout.chunk * problem.depth / rate.mma
    expand_issue = pixels * layout.chunk * EPILOGUE / rates.ISSUE
    width_of_thread = channels_of_a_thread(layout.chunk, problem.kernel, problem.dtype)
    columns = columns_of_a_strip(problem.kernel, width_of_thread)
    strips = -(-width // columns) * -(-height // layout.rows)
    rounds = -(-strips // (THREADS // (layout.chunk // width_of_thread)))
    taps = problem.kernel**2
    inputs = (columns - 1) * problem.stride + problem.kernel
    rows_in = (layout.rows - 1) * problem.stride + problem.kernel
    strip_issue = layout.rows * columns * width_of_thread * (taps + EPILOGUE)
    strip_issue += (2 * rows_in * inputs + 2 * taps) * width_of_thread
    issue = expand_issue + rounds * strip_issue
    weights = 2 * layout.chunk * problem.depth / rate.l2
    outputs = 2 * problem.n * problem.channels * problem.out_size[0] * problem.out_size[1]
    stored = 2 * height * width * layout.chunk / _memory_rate(outputs, target)
    parts = (matrix, issue, weights + stored)
    busiest = max(parts)
    hidden = EXPOSED if resident > 1 else 1.0
    of_chunk = busiest + hidden * (sum(parts) - busiest)
    of_block = 2 * pixels * problem.depth / rate.l2 + layout.chunks * of_chunk
    waves = -(-blocks // (target.multiprocessors * resident))
    return SLOWER * waves * resident * of_block + LAUNCH_CLOCKS * (0.5 if tiles > 1 else 0.0)
