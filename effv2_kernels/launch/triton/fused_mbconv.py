"""The launch of ``triton_kernels.fused_mbconv``: tiles of pixels, chunks of expanded channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from ..targets import Target
from . import dense

KERNEL = "fused_mbconv"


@dataclass(frozen=True)
class Shape:
    """rows: output pixels of all images; channels, expanded and out_channels of the block; taps: kh
    kw of its expansion; special: special functions an expanded element."""

    rows: int
    channels: int
    expanded: int
    out_channels: int
    taps: int
    special: int = 1

    @property
    def columns(self) -> int:
        return self.taps * self.channels

    @property
    def block_o(self) -> int:
        """All output channels are one tile."""
        return dense.power_of_two(self.out_channels)


@dataclass(frozen=True)
class Choice:
    """block_f: expanded channels of a second product beside the block_e of the first, or 0."""

    block_m: int
    block_e: int
    block_k: int
    warps: int
    stages: int
    block_f: int = 0

    @property
    def chunk(self) -> int:
        return self.block_e + self.block_f


def shared_bytes(shape: Shape, choice: Choice, kind: str) -> int:
    """An upper bound: both operands of the expansion in every stage, the projection's weights, and
    the expanded tile where it has to go through shared memory to become an operand."""
    item = dense.ITEM_BYTES[kind]
    loop = choice.stages * choice.block_k * (choice.block_m + choice.chunk) * item
    second = choice.chunk * (shape.block_o + choice.block_m) * item
    return max(loop + second, choice.block_m * (shape.block_o + 8) * 4) + 1024


def _tile(shape: Shape, choice: Choice, kind: str, target: Target) -> dense.Tile:
    item = dense.ITEM_BYTES[kind]
    columns = dense.pad(shape.columns, choice.block_k)
    expanded = dense.pad(shape.expanded, choice.chunk)
    m, e, o = choice.block_m, choice.chunk, shape.block_o
    read = min(columns, shape.channels * dense.rows_of_a_window(shape.taps))
    first, second = float(m * expanded * columns), float(m * expanded * o)
    slow_first = first / dense.efficiency(m, choice.block_e, choice.warps, target)
    slow_second = second / dense.efficiency(m, o, choice.warps, target)
    return dense.Tile(
        products=first + second,
        loaded=float(item * (m * read + expanded * (columns + o))),
        copied=float(item * (expanded // e * columns * (m + e) + expanded * o)),
        special=float(m * expanded * shape.special),
        steps=expanded // e * (columns // choice.block_k + 1),
        shared=shared_bytes(shape, choice, kind),
        accumulators=m * (e + o),
        warps=choice.warps,
        stages=choice.stages,
        efficiency=(first + second) / (slow_first + slow_second),
    )


def fits(shape: Shape, choice: Choice, kind: str, target: Target) -> bool:
    return dense.fits(_tile(shape, choice, kind, target), target, kind)


def _fits_well(shape: Shape, choice: Choice, kind: str, target: Target) -> bool:
    tile, products = _tile(shape, choice, kind, target), 1 + (choice.block_f > 0)
    return dense.fits(tile, target, kind) and dense.is_roomy(tile, target, kind, products)


def cost(shape: Shape, choice: Choice, kind: str, target: Target) -> float:
    """Clocks by the model of ``dense``."""
    weights = shape.expanded * (shape.columns + shape.out_channels)
    maps = shape.rows * (shape.channels + shape.out_channels)
    tile = _tile(shape, choice, kind, target)
    programs = -(-shape.rows // choice.block_m)
    moved = float((weights + maps) * dense.ITEM_BYTES[kind])
    return dense.clocks(tile, programs, moved, target, kind)


def candidates(shape: Shape, kind: str, target: Target) -> Iterator[Choice]:
    """Every choice that is worth a look and fits; none where the output channels are too many for
    one tile, and two convolutions do what one launch cannot."""
    blocks_k = (16, 32) if kind == "float32" else (32, 64, 128)
    for m, e, k, warps, stages in product(
        (16, 32, 64, 128, 256), (32, 64, 128), blocks_k, (4, 8), (2, 3, 4)
    ):
        if e > dense.power_of_two(shape.expanded, 32) or m > dense.power_of_two(shape.rows, 64):
            continue
        if k > max(dense.power_of_two(shape.columns), blocks_k[0]):
            continue
        if not dense.worth_a_look(m, warps, kind, target):
            continue
        for f in dense.second_width(shape.expanded, e):
            choice = Choice(m, e, k, warps, stages, f)
            if _fits_well(shape, choice, kind, target):
                yield choice


def modelled(shape: Shape, kind: str, target: Target) -> Choice | None:
    """The candidate that the model likes best; None if there is none."""
    return min(
        candidates(shape, kind, target),
        key=lambda choice: (
            cost(shape, choice, kind, target),
            shared_bytes(shape, choice, kind),
            choice.warps,
        ),
        default=None,
    )
