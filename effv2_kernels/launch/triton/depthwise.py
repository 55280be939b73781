"""The launch of ``triton_kernels.depthwise``: tiles of one image's pixels by channels, and over how
many programs an image is spread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from .. import rates
from ..targets import Target
from . import dense

KERNEL = "depthwise"
_PER_THREAD = (8, 16, 32)  # outputs: fewer leave loads unhidden, more spill


@dataclass(frozen=True)
class Shape:
    """images; pixels of one image's output; channels; taps: kh kw."""

    images: int
    pixels: int
    channels: int
    taps: int


@dataclass(frozen=True)
class Choice:
    """tiles: that a program goes through, one after another."""

    block_p: int
    block_c: int
    tiles: int
    warps: int


def parts(shape: Shape, choice: Choice) -> int:
    """Programs that share an image."""
    return dense.count(dense.count(shape.pixels, choice.block_p), choice.tiles)


def shared_bytes(shape: Shape, choice: Choice, kind: str) -> int:
    """An upper bound: the exchange of sums between warps."""
    return choice.block_c * choice.warps * 4 + 1024


def fits(shape: Shape, choice: Choice, kind: str, target: Target) -> bool:
    per_thread = choice.block_p * choice.block_c // (32 * choice.warps)
    shared = shared_bytes(shape, choice, kind)
    return min(_PER_THREAD) <= per_thread <= max(_PER_THREAD) and shared <= target.shared_per_block


def cost(shape: Shape, choice: Choice, kind: str, target: Target) -> float:
    """Clocks: memory once, or every tap's loads from L1 (64 bytes a clock) with its padding. Not
    measured."""
    item = dense.ITEM_BYTES[kind]
    columns = -(-shape.channels // choice.block_c)
    programs = shape.images * columns * parts(shape, choice)
    tile = choice.block_p * choice.block_c
    work = 200.0 + choice.tiles * tile * (shape.taps * item / 64 + shape.taps / 64 + 1 / 8)
    at_a_time = dense.MAX_THREADS // (64 * choice.warps)  # half of what the threads would allow
    rounds, rest = divmod(programs, target.multiprocessors * at_a_time)
    busy = rounds * at_a_time * work + -(-rest // target.multiprocessors) * work
    # A program alone waits for a row of taps in each tile.
    alone = choice.tiles * (1500.0 + work)
    moved = 2.0 * shape.images * shape.pixels * shape.channels * item
    memory = moved / (rates.COPY * rates.of(target).memory * target.multiprocessors)
    return max(busy, alone, memory) + 4.0 * parts(shape, choice)


def candidates(shape: Shape, kind: str, target: Target) -> Iterator[Choice]:
    """Every choice that is worth a look and fits."""
    for block_p, block_c, tiles, warps in product(
        (8, 16, 32, 64, 128), (16, 32, 64, 128), (1, 2, 4, 8), (1, 2, 4, 8)
    ):
        widest = dense.power_of_two(shape.channels)
        if not min(64, widest) <= block_c <= widest:  # 128 bytes of a pixel, where it has them
            continue
        if tiles > 1 and (tiles - 1) * block_p >= shape.pixels:
            continue
        choice = Choice(block_p, block_c, tiles, warps)
        if fits(shape, choice, kind, target):
            yield choice


def modelled(shape: Shape, kind: str, target: Target) -> Choice:
    """The candidate that the model likes best; of equals, the widest and then the smallest."""
    return min(
        candidates(shape, kind, target),
        key=lambda choice: (
            cost(shape, choice, kind, target),
            -choice.block_c,
            choice.tiles,
            choice.warps,
        ),
    )
