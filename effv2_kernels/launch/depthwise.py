"""How ``csrc/depthwise.cu`` is laid out: its header says what the numbers mean.

The model behind the choice is a count of rounds: how many input rows the busiest multiprocessor
walks down, one after another. It has not been measured on a GPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from .targets import Target

THREADS = 128  # of a block, at most
BLOCKS = 2  # of a multiprocessor
CLUSTERS = (2, 4, 8)  # blocks; sizes that every GPU with clusters takes
# What a strip costs besides its rows, and a second launch, in input rows (about 0.6 us each).
STRIP_ROWS = 4
LAUNCH_ROWS = 5
MOST_ROWS = 64


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
    return {3: widest, 5: 4, 7: 2}[kernel]


def columns_of_a_strip(kernel: int, width: int) -> int:
    """``kDepthwiseColumns`` of csrc/common/depthwise.cuh."""
    return 4 if kernel == 7 or width == 1 else 2


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
    width = channels_of_a_thread(channels, kernel, dtype)
    channel_threads = _channel_threads(-(-channels // width), width * dtype.itemsize)
    strip_threads = THREADS // channel_threads
    channel_blocks = -(-channels // (channel_threads * width))
    across = -(-out_size[1] // columns_of_a_strip(kernel, width))
    clusters = target.capability >= (9, 0)
    found: tuple[float, DepthwiseLaunch] | None = None
    for rows in range(1, min(out_size[0], MOST_ROWS) + 1):
        strips = across * -(-out_size[0] // rows)
        enough = -(-strips // strip_threads)
        for parts in _parts(enough, squeeze, clusters):
            cluster = squeeze and clusters and parts in CLUSTERS
            waves = -(-n * channel_blocks * parts // (target.multiprocessors * BLOCKS))
            rounds = -(-strips // (parts * strip_threads))
            cost: float = waves * rounds * ((rows - 1) * stride + kernel + STRIP_ROWS)
            if squeeze and parts > 1 and not cluster:
                cost += LAUNCH_ROWS
            # Among equals the longer strip, which reads fewer rows twice.
            if found is None or cost <= found[0]:
                found = (
                    cost,
                    DepthwiseLaunch(channel_threads, strip_threads, rows, parts, cluster),
                )
    assert found is not None
    return found[1]


def _channel_threads(vectors: int, vector_bytes: int) -> int:
    """Lanes along the channels: as many as make a line of 128 bytes, or twice or half of that
    where fewer of them have nothing to do."""
    line = min(128 // vector_bytes, 32)
    return min((line, 2 * line, line // 2), key=lambda lanes: -(-vectors // lanes) * lanes)


def _parts(enough: int, squeeze: bool, clusters: bool) -> list[int]:
    """In how many blocks an image may be split, for the same channels; ``enough`` give each thread
    one strip. With squeeze fewer do, each going on to further strips."""
    if not squeeze:
        return [enough]
    return sorted(
        {1, enough} | {parts for parts in CLUSTERS if parts < (2 * enough if clusters else enough)}
    )
