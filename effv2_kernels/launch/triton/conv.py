"""The launch of ``triton_kernels.conv``: tiles of pixels and channels, and when to split K; or, for
1x1 convolutions, of ``triton_kernels.pointwise``, whose programs keep their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from .. import rates
from ..targets import Target
from . import dense

KERNEL = "conv"
# Instructions an output that streams issue outside of their products, by their SASS.
_ISSUED = 8.5
# With fewer there is nothing that the next tile's loads could hide behind.
_FEWEST_TURNS = 4
# Bytes an output channel in which accumulators are brought into the order of the output, by warps:
# what the compiler took. (The bound of ``shared_bytes`` is what it might.)
_EXCHANGE = {4: 64, 8: 256}
# Weights of more channels leave room for too few programs: 256 to 1536 took 52 us and more, 49 in
# tiles.
_MOST_CHANNELS = 192
# How much longer a turn takes with a single load under way (100 measured launches on an H200).
_TWO_STAGES = 1.4


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
    """block_r: channels of a second product beside the block_n of the first, or 0; resident: how
    many programs a multiprocessor has that keep their weights (block_k says nothing then), or 0:
    each program is one tile."""

    block_m: int
    block_n: int
    block_k: int
    split_k: int
    warps: int
    stages: int
    block_r: int = 0
    resident: int = 0

    @property
    def width(self) -> int:
        return self.block_n + self.block_r


def divided(channels: int) -> tuple[int, int]:
    """As a power of two and a smaller one, or 0. (0, 0) if that cannot be, or not for a product,
    whose depth is 16 at least."""
    first = 1 << (channels.bit_length() - 1)
    rest = channels - first
    possible = first >= 16 and (rest == 0 or (rest >= 16 and rest & (rest - 1) == 0))
    return (first, rest) if possible else (0, 0)


def in_tiles(choice: Choice) -> Choice:
    """The same tile for programs that keep nothing: for a window that is no single pixel."""
    return replace(choice, block_k=32, resident=0) if choice.resident else choice


def shared_bytes(shape: Shape, choice: Choice, kind: str) -> int:
    """An upper bound: A, B and two rows of a gate in every stage; where nothing is in flight any
    more, the same memory is used to bring the accumulators into the order of the output. Beside
    weights that stay there is more memory for that, a 16-bit value each."""
    item = dense.ITEM_BYTES[kind]
    if choice.resident:
        loaded = (choice.stages * choice.block_m + choice.block_n) * shape.channels * item
        return loaded + choice.block_m * choice.block_n * 2 + 1024
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
    if choice.resident and not _may_stay(shape, kind, target):
        return False
    return dense.fits(_tile(shape, choice, kind, target), target, kind)


def _fits_well(shape: Shape, choice: Choice, kind: str, target: Target) -> bool:
    tile, products = _tile(shape, choice, kind, target), 1 + (choice.block_r > 0)
    return dense.fits(tile, target, kind) and dense.is_roomy(tile, target, kind, products)


def cost(shape: Shape, choice: Choice, kind: str, target: Target) -> float:
    """Clocks by the model of ``dense``."""
    if choice.resident:
        return _cost_of_streams(shape, choice, kind, target)
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


def _cost_of_streams(shape: Shape, choice: Choice, kind: str, target: Target) -> float:
    """Clocks: of a program's tiles one after another, with loads beside them. Programs of one
    multiprocessor fill each other's gaps."""
    item, rate = dense.ITEM_BYTES[kind], rates.of(target)
    outputs = choice.block_m * choice.block_n
    good = dense.efficiency(choice.block_m, choice.block_n, choice.warps, target)
    parts = (
        outputs * shape.channels / (rate.tensor * good),
        outputs * _ISSUED / rates.ISSUE,
        choice.block_m * (shape.channels + choice.block_n) * item / rate.l2,
    )
    busy = choice.resident * max(parts)
    turn = max(busy, sum(parts)) * (_TWO_STAGES if choice.stages == 2 else 1.0)
    turns = _turns(shape, choice, target)
    weights = choice.block_n * shape.channels * item / rate.l2
    moved = shape.rows * (shape.channels + shape.out_channels) * item
    whole = max(turns * turn, moved / (rate.memory * target.multiprocessors))
    return dense.START + weights * choice.resident + whole


def streams(shape: Shape, choice: Choice, target: Target) -> int:
    """How many programs share the pixels, for each tile of channels."""
    tiles = dense.count(shape.out_channels, choice.block_n)
    at_a_time = choice.resident * target.multiprocessors
    return min(max(1, at_a_time // tiles), dense.count(shape.rows, choice.block_m))


def _turns(shape: Shape, choice: Choice, target: Target) -> int:
    """Tiles of pixels that a program walks."""
    return dense.count(dense.count(shape.rows, choice.block_m), streams(shape, choice, target))


def _may_stay(shape: Shape, kind: str, target: Target) -> bool:
    """Whether there is a kernel in which weights of such a convolution stay."""
    possible = target.has_wgmma and kind in ("bfloat16", "float16")
    return possible and shape.taps == 1 and not shape.gated and divided(shape.channels) != (0, 0)


def _streams(shape: Shape, kind: str, target: Target) -> Iterator[Choice]:
    """Choices with weights that stay."""
    if not _may_stay(shape, kind, target) or shape.channels > _MOST_CHANNELS:
        return
    widest = dense.power_of_two(shape.out_channels)
    for m, n, warps, stages in product((64, 128), (64, 128, 256), (4, 8), (2, 3, 4)):
        choice = Choice(m, n, divided(shape.channels)[0], 1, warps, stages, 0, 1)
        tile = m * n // (32 * warps)
        shared = shared_bytes(shape, choice, kind)
        if n > widest or not 32 <= tile <= 128 or shared > target.shared_per_block:
            continue
        taken = shared - 2 * m * n + min(2 * m * n, _EXCHANGE[warps] * max(n, 128))
        by_shared = target.shared_per_multiprocessor // taken
        by_registers = target.registers_per_multiprocessor // (32 * warps * (tile + 64))
        choice = replace(choice, resident=min(by_shared, by_registers, 4))
        # One program alone on a multiprocessor lost to two wherever both were measured.
        if choice.resident > 1 and _turns(shape, choice, target) >= _FEWEST_TURNS:
            yield choice


def candidates(shape: Shape, kind: str, target: Target) -> Iterator[Choice]:
    """Every choice that is worth a look and fits."""
    yield from _streams(shape, kind, target)
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
