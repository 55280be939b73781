"""From bytes and operations to time: the least that a GPU needs for a kernel, and for a block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .kernels import Kernel

UNITS = ("memory", "tensor", "plain", "sfu")


@dataclass(frozen=True)
class Ceilings:
    """What a device reaches at best: bytes a second of a copy (read plus written), FLOPs a second
    of a large matrix product in the dtype at hand and of plain fp32 code, special-function
    operations a second. ``source`` says how they are known."""

    source: str
    memory: float
    tensor: float
    plain: float
    sfu: float


#: Copy and bf16 matrix rate as measured on an H200 by others; fp32 and special-function rate from
#: ``launch.rates`` at 1.755 GHz, rounded: committed floors were counted with these numbers.
H200 = Ceilings("H200: 790 TFLOP/s, 4.3 TB/s", 4.3e12, 790e12, 60e12, 3.7e12)


def seconds(kernel: Kernel, ceilings: Ceilings) -> float:
    """The busiest unit decides; all others work at the same time."""
    return max(_demands(kernel, ceilings))


def total(kernels: Iterable[Kernel], ceilings: Ceilings) -> float:
    """Kernels run one after the other."""
    return sum(seconds(kernel, ceilings) for kernel in kernels)


def shares(kernels: Iterable[Kernel], ceilings: Ceilings) -> dict[str, float]:
    """The part of the total in which each unit is the busiest one."""
    found = dict.fromkeys(UNITS, 0.0)
    for kernel in kernels:
        demands = _demands(kernel, ceilings)
        found[UNITS[demands.index(max(demands))]] += max(demands)
    whole = sum(found.values())
    return {unit: part / whole if whole else 0.0 for unit, part in found.items()}


def _demands(kernel: Kernel, ceilings: Ceilings) -> list[float]:
    return [
        kernel.bytes / ceilings.memory,
        kernel.tensor / ceilings.tensor,
        kernel.plain / ceilings.plain,
        kernel.sfu / ceilings.sfu,
    ]
