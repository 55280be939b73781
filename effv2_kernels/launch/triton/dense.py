"""What the tensor-core kernels have in common: the arithmetic they can do it in, what a tile takes
of a multiprocessor, and a model of how long a grid of tiles takes.

The model is for ranking tiles, not for predicting times. Its rates are those of ``rates``; its
latencies are those with which it ranked 492 launches of V2-S's 34 shapes best that were measured on
an H200: of these, the one that it ranks first takes 9 % longer than the fastest on average (they
were fitted to the same data; memory was at 21 bytes a clock then, and what comes first is the same
now). The long ends of a program are what that run taught: small tiles, several to a multiprocessor,
whose ends hide behind each other's loops, beat the large ones that multiply best. ``tune``
measures, and what it finds goes before the model (``tables``).
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import rates
from ..targets import Target

# What multiplies: "tf32" and "float32" (IEEE) both take float32 operands.
KINDS = ("bfloat16", "float16", "tf32", "float32")
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "tf32": 4, "float32": 4}
MAX_THREADS = 2048  # of a multiprocessor
MAX_REGISTERS = 255  # of a thread
_MOST_ACCUMULATORS = {"bfloat16": 96, "float16": 96, "tf32": 96, "float32": 32}  # of a thread


# Bytes a clock: a quarter of what shared memory takes, for gathered pieces are short.
_SHARED = 32.0
START = 2500.0  # clocks from a launch to the first product, and from the last one to the end
_LATENCY = 600.0  # clocks of a load from L2 or memory
_STEP = 120.0  # clocks of a step's barriers and addresses
_ENDS = 12000.0  # clocks of a program's first addresses and loads, and of its stores
_LAUNCH = 3000.0  # clocks that one more launch costs


def pad(size: int, block: int) -> int:
    return -(-size // block) * block


def count(size: int, block: int) -> int:
    """How many blocks cover ``size``."""
    return -(-size // block)


def power_of_two(size: int, least: int = 16) -> int:
    """The smallest power of two that is at least ``size`` and ``least``."""
    return max(least, 1 << (size - 1).bit_length())


@dataclass(frozen=True)
class Tile:
    """What one program of a kernel does and takes.

    products: multiply-adds, padding included; loaded: bytes it reads from L2; copied: bytes that it
    brings into shared memory, from L2 or from L1; special: special
    functions; steps: dependent steps of its main loop; shared: bytes of shared memory;
    accumulators: float32 values that live through the main loop; efficiency: of the tensor cores at
    this shape.
    """

    products: float
    loaded: float
    copied: float
    special: float
    steps: int
    shared: int
    accumulators: int
    warps: int
    stages: int
    efficiency: float

    @property
    def registers(self) -> int:
        """Of a thread, about: accumulators, and addresses, masks and fragments beside them."""
        return self.accumulators // (32 * self.warps) + 72


def fits(tile: Tile, target: Target, kind: str) -> bool:
    """Whether a program can run: shared memory and accumulators within the limits."""
    return tile.shared <= target.shared_per_block and _per_thread(tile) <= MAX_REGISTERS - 64


def is_roomy(tile: Tile, target: Target, kind: str, products: int = 1) -> bool:
    """Whether there are few enough accumulators that ptxas does not spill, in any network (found by
    compiling; ``benchmarks/results/static/triton.csv``). products: of one gathered tile; Hopper's
    take their operands from shared memory, others hold those of both in registers."""
    most = _MOST_ACCUMULATORS[kind]
    if products > 1 and not target.has_wgmma:
        most = min(most, 64)
    return _per_thread(tile) <= most


def _per_thread(tile: Tile) -> int:
    return tile.accumulators // (32 * tile.warps)


def worth_a_look(block_m: int, warps: int, kind: str, target: Target) -> bool:
    """Hopper's and later matrix instructions take 64 rows and four warps; less falls back to
    Ampere's, at a third of the rate."""
    fallback = block_m < 64 or warps < 4
    return kind == "float32" or target.capability < (9, 0) or not fallback


def occupancy(tile: Tile, target: Target) -> int:
    """Programs that run on a multiprocessor at a time."""
    by_shared = target.shared_per_multiprocessor // max(tile.shared + 1024, 1)
    registers = min(tile.registers, MAX_REGISTERS) * 32 * tile.warps
    by_registers = target.registers_per_multiprocessor // registers
    return max(1, min(by_shared, by_registers, MAX_THREADS // (32 * tile.warps)))


def clocks(tile: Tile, programs: int, memory_bytes: float, target: Target, kind: str) -> float:
    """About how many clocks ``programs`` such tiles take that move ``memory_bytes`` in all."""
    at_a_time = occupancy(tile, target)
    rate = rates.of(target)
    if kind == "float32":
        multiply = tile.products / (rate.float32 * 0.5)
    else:
        share = 0.5 if kind == "tf32" else 1.0
        multiply = tile.products / (rate.tensor * share * tile.efficiency)
    work = max(multiply, tile.loaded / rate.l2, tile.copied / _SHARED)
    work += 0.5 * tile.special / rates.SPECIAL
    work += tile.steps * _STEP
    if tile.stages < 3:  # nothing is under way while a step computes
        work *= 1.1
    # A program alone waits for its loads, unless it has enough of them under way.
    alone = max(work, tile.steps * _LATENCY / max(tile.stages - 1, 1)) + _ENDS
    rounds, rest = divmod(programs, target.multiprocessors * at_a_time)
    total = rounds * max(at_a_time * work, alone)
    if rest:
        total += max(-(-rest // target.multiprocessors) * work, alone)
    return START + max(total, memory_bytes / (rate.memory * target.multiprocessors))


def rows_of_a_window(taps: int) -> int:
    """How often a tile of pixels reads its input from L2: once for each row of the window, whose
    other taps come out of L1."""
    return max(1, round(taps**0.5))


def second_width(size: int, block: int) -> list[int]:
    """Powers of two beside ``block`` that cover ``size`` with less padding than blocks do, or twice
    as wide ones; 0 among them."""
    best = min(pad(size, block), pad(size, 2 * block))
    return [0, *(more for more in (16, 32, 64) if more < block and pad(size, block + more) < best)]


def second_launch(memory_bytes: float, target: Target) -> float:
    """About how many clocks a small kernel after the first costs."""
    return _LAUNCH + memory_bytes / (rates.of(target).l2 * target.multiprocessors)


def efficiency(block_m: int, block_n: int, warps: int, target: Target) -> float:
    """Of the tensor cores, by the shape of the product: narrow ones wait for shared memory, and
    Hopper wants 64 rows for each group of four warps."""
    narrow = min(1.0, block_n / 128) ** 0.5 * min(1.0, block_m / 128) ** 0.25
    if target.has_wgmma and block_m < 16 * warps:
        narrow *= 0.8
    return rates.PRODUCT * narrow
