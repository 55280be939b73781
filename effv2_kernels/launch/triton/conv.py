"""The launch of ``triton_kernels.conv``: tiles of pixels and channels, and when to split K."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from ..targets import Target
from . import dense

KERNEL = "conv"


@dataclass(frozen=True)
class Shape:
    """rows: output pixels of all images; channels and out_channels of the convolution; taps: kh kw;
    gated: whether the input is multiplied by a gate; special: special functions an output."""

    rows: int
    channels: int
    out_channels: int
    taps: int
    gated: bool = False
    special: int = 1

    @property
    def columns(self) -> int:
        return self.taps * self.channels


@dataclass(frozen=True)
class Choice:
    """block_r: channels of a second product beside the block_n of the first, or 0."""

    block_m: int
    block_n: int
    block_k: int
    split_k: int
    warps: int
    stages: int
    block_r: int = 0

    @property
    def width(self) -> int:
        return self.block_n + self.block_r


def shared_bytes(shape: Shape, choice: Choice, kind: str) -> int:
    """An upper bound: A, B and two rows of a gate in every stage; where nothing is in flight any
    more, the same memory is used to bring the accumulators into the order of the output."""
    item = dense.ITEM_BYTES[kind]
    rows = choice.block_m + choice.width + (2 if shape.gated else 0)
    loop = choice.stages * rows * choice.block_k * item
    return max(loop, choice.block_m * (choice.block_n + 8) * 4) + 1024


def stages_with_gate(choice: Choice, kind: str, target: Target) -> int:
    """The stages for which there is room where a tile lies in many images, and its gate takes as
    much shared memory as A does."""
    item = dense.ITEM_BYTES[kind]
    stage = (2 * choice.block_m + choice.width) * choice.block_k * item
    return max(1, min(choice.stages, (target.shared_per_block - 1024) // stage))


def _tile(shape: Shape, choice: Choice, kind: str, target: Target) -> dense.Tile:
    columns = dense.pad(shape.columns, choice.block_k * choice.split_k) // choice.split_k
    m, n = choice.block_m, choice.width
    read = min(columns, shape.channels * dense.rows_of_a_window(shape.taps))
    return dense.Tile(
        products=float(m * n * columns),
        loaded=float((m * read + n * columns) * dense.ITEM_BYTES[kind]),
        copied=float((m + n) * columns * dense.ITEM_BYTES[kind]),
        special=float(m * n * shape.special),
        steps=columns // choice.block_k,
        shared=shared_bytes(shape, choice, kind),
        accumulators=m * n,
        warps=choice.warps,
        stages=choice.stages,
        efficiency=dense.efficiency(m, choice.block_n, choice.warps, target),
    )


def fits(shape: Shape, choice: Choice, kind: str, target: Target) -> bool:
    return dense.fits(_tile(shape, choice, kind, target), target, kind)


def _fits_well(shape: Shape, choice: Choice, kind: str, target: Target) -> bool:
    tile, products = _tile(shape, choice, kind, target), 1 + (choice.block_r > 0)
    return dense.fits(tile, target, kind) and dense.is_roomy(tile, target, kind, products)


def cost(shape: Shape, choice: Choice, kind: str, target: Target) -> float:
    """Clocks by the model of ``dense``."""
    item = dense.ITEM_BYTES[kind]
    tiles = -(-shape.rows // choice.block_m) * -(-shape.out_channels // choice.width)
    elements = shape.rows * shape.out_channels
    moved = (shape.rows * shape.channels + shape.out_channels * shape.columns) * item
    moved += elements * (4 * choice.split_k if choice.split_k > 1 else item)
    tile = _tile(shape, choice, kind, target)
    total = dense.clocks(tile, tiles * choice.split_k, float(moved), target, kind)
    if choice.split_k > 1:
        partial = elements * 4.0 * choice.split_k
        total += dense.second_launch(partial + elements * item, target)
    return total


def candidates(shape: Shape, kind: str, target: Target) -> Iterator[Choice]:
    """Every choice that is worth a look and fits."""
    widest = dense.power_of_two(shape.out_channels)
    longest = dense.power_of_two(shape.columns)
    blocks_k = (16, 32) if kind == "float32" else (32, 64, 128)
    for m, n, k, split, warps, stages in product(
        (16, 32, 64, 128, 256), (16, 32, 64, 128, 256), blocks_k, (1, 2, 4, 8), (4, 8), (2, 3, 4)
    ):
        if n > widest or k > max(longest, blocks_k[0]) or m > dense.power_of_two(shape.rows, 64):
            continue
        if split > 1 and (shape.columns < split * 2 * k or shape.rows > 4096):
            continue
        if m * n < 8 * 32 * warps or not dense.worth_a_look(m, warps, kind, target):
            continue
        for r in dense.second_width(shape.out_channels, n):
            choice = Choice(m, n, k, split, warps, stages, r)
            if _fits_well(shape, choice, kind, target):
                yield choice


def modelled(shape: Shape, kind: str, target: Target) -> Choice:
    """The candidate that the model likes best; of equals, the one that takes the least memory."""
    return min(
        candidates(shape, kind, target),
        key=lambda choice: (
            cost(shape, choice, kind, target),
            shared_bytes(shape, choice, kind),
            choice.warps,
        ),
    )
