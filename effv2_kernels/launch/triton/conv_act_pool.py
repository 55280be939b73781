"""The launch of ``triton_kernels.pool``: tiles of one image's pixels, and over how many programs an
image is spread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from ..targets import Target
from . import dense

KERNEL = "conv_act_pool"


@dataclass(frozen=True)
class Shape:
    """images; pixels of one; channels and out_channels of the convolution; special: special
    functions an element of the map that is not written."""

    images: int
    pixels: int
    channels: int
    out_channels: int
    special: int = 1


@dataclass(frozen=True)
class Choice:
    """parts: programs that share an image."""

    block_m: int
    block_n: int
    block_k: int
    parts: int
    warps: int
    stages: int


def shared_bytes(shape: Shape, choice: Choice, kind: str) -> int:
    """An upper bound: both operands in every stage, and the exchange of sums between warps."""
    item = dense.ITEM_BYTES[kind]
    loop = choice.stages * choice.block_k * (choice.block_m + choice.block_n) * item
    return loop + choice.block_n * choice.warps * 4 + 1024


def tiles_of_a_part(shape: Shape, choice: Choice) -> int:
    tiles = -(-shape.pixels // choice.block_m)
    return -(-tiles // choice.parts)


def _tile(shape: Shape, choice: Choice, kind: str, target: Target) -> dense.Tile:
    columns = dense.pad(shape.channels, choice.block_k)
    m, n, tiles = choice.block_m, choice.block_n, tiles_of_a_part(shape, choice)
    return dense.Tile(
        products=float(tiles * m * n * columns),
        loaded=float(tiles * (m + n) * columns * dense.ITEM_BYTES[kind]),
        copied=float(tiles * (m + n) * columns * dense.ITEM_BYTES[kind]),
        special=float(tiles * m * n * shape.special),
        steps=tiles * columns // choice.block_k,
        shared=shared_bytes(shape, choice, kind),
        accumulators=m * n,
        warps=choice.warps,
        stages=choice.stages,
        efficiency=dense.efficiency(m, n, choice.warps, target),
    )


def fits(shape: Shape, choice: Choice, kind: str, target: Target) -> bool:
    return dense.fits(_tile(shape, choice, kind, target), target, kind)


def _fits_well(shape: Shape, choice: Choice, kind: str, target: Target) -> bool:
    tile = _tile(shape, choice, kind, target)
    return dense.fits(tile, target, kind) and dense.is_roomy(tile, target, kind)


def cost(shape: Shape, choice: Choice, kind: str, target: Target) -> float:
    """Clocks by the model of ``dense``."""
    tiles_n = -(-shape.out_channels // choice.block_n)
    tile = _tile(shape, choice, kind, target)
    elements = shape.images * shape.pixels * shape.channels
    moved = float((elements + shape.channels * shape.out_channels) * dense.ITEM_BYTES[kind])
    programs = shape.images * tiles_n * choice.parts
    total = dense.clocks(tile, programs, moved, target, kind)
    if choice.parts > 1:
        total += dense.second_launch(4.0 * programs * choice.block_n, target)
    return total


def candidates(shape: Shape, kind: str, target: Target) -> Iterator[Choice]:
    """Every choice that is worth a look and fits."""
    blocks_k = (16, 32) if kind == "float32" else (32, 64, 128)
    for m, n, k, warps, stages in product(
        (16, 32, 64, 128, 256), (16, 32, 64, 128, 256), blocks_k, (4, 8), (2, 3, 4)
    ):
        if m > dense.power_of_two(shape.pixels, 64) or n > dense.power_of_two(shape.out_channels):
            continue
        if k > max(dense.power_of_two(shape.channels), blocks_k[0]):
            continue
        if m * n < 8 * 32 * warps or not dense.worth_a_look(m, warps, kind, target):
            continue
        tiles = -(-shape.pixels // m)
        for parts in sorted({1, -(-tiles // 2), tiles}):
            choice = Choice(m, n, k, parts, warps, stages)
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
