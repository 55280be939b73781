"""What a multiprocessor does in a clock: the one table for all the models that choose launches.

Products are of the data sheets and, where it says so, of compiled code. Memory is the device's own,
read from it (``targets``), for within a generation it differs by three times.
"""

from __future__ import annotations

from dataclasses import dataclass

from .targets import Target

# Bytes out of L2, of any generation: 5.5 to 7 TB/s of an H100 or H200.
L2 = 28.0
SPECIAL = 16  # special functions
FLOAT32 = 128  # multiply-adds in float32 outside of tensor cores
# Of memory's rate, what a kernel that reads once and writes once reaches.
COPY = 0.85
# Of the tensor cores' rate, what a large tile of a plain matrix product reaches.
PRODUCT = 0.7


@dataclass(frozen=True)
class Rates:
    """Multiply-adds in 16 bits: ``tensor`` by the GPU's best matrix instruction, ``mma`` by
    mma.sync with operands from shared memory, as reached; bytes out of ``l2`` and of ``memory``."""

    tensor: float
    mma: float
    l2: float
    memory: float


# (tensor, mma) by compute capability; 8.6, 8.9 and 12.0 as workstation cards have them.
_PRODUCTS = {
    (8, 0): (1024, 800),
    (8, 6): (512, 400),
    (8, 9): (512, 400),
    (9, 0): (2048, 1300),
    (10, 0): (4096, 1300),
    (12, 0): (512, 450),
}


def of(target: Target) -> Rates:
    """Products as of the newest capability in the table that is not newer than the target's."""
    known = [capability for capability in _PRODUCTS if capability <= target.capability]
    tensor, mma = _PRODUCTS[max(known, default=min(_PRODUCTS))]
    return Rates(tensor, mma, L2, target.memory_rate)
