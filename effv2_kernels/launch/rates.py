"""What a multiprocessor does in a clock: the one table for all the models that choose launches.

Products are the data sheets', but for ``mma``, which is counted in compiled code. Memory is the
device's own, read from it (``targets``), for within a generation it differs by three times. Clocks
are the highest; under load a GPU runs at some 90 % of them, and its memory as fast as ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from .targets import Target

# Bytes out of L2, of any generation: 6.5 TB/s of an H200 at the 1.755 GHz that it has under load.
L2 = 28.0
SPECIAL = 16  # special functions
ISSUE = 128  # lanes that get their next instruction
# Of memory's rate, what a kernel that reads once and writes once reaches.
COPY = 0.85
# Of the tensor cores' rate, what a large tile of a plain matrix product reaches.
PRODUCT = 0.7


@dataclass(frozen=True)
class Rates:
    """Multiply-adds: in 16 bits ``tensor`` by the GPU's best matrix instruction and ``mma`` by
    mma.sync with operands from shared memory; ``float32`` outside of the tensor cores. Bytes out of
    ``l2`` and of ``memory``."""

    tensor: float
    mma: float
    float32: float
    l2: float
    memory: float


# (tensor, mma, float32) by compute capability; 8.6, 8.9 and 12.0 as workstation cards have them.
_PRODUCTS = {
    (8, 0): (1024, 800, 64),
    (8, 6): (512, 400, 128),
    (8, 9): (512, 400, 128),
    (9, 0): (2048, 1300, 128),
    (10, 0): (4096, 1300, 128),
    (12, 0): (512, 450, 128),
}


def of(target: Target) -> Rates:
    """Products as of the newest capability in the table that is not newer than the target's."""
    known = [capability for capability in _PRODUCTS if capability <= target.capability]
    products = _PRODUCTS[max(known, default=min(_PRODUCTS))]
    return Rates(*products, L2, target.memory_rate)
