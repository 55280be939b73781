"""What a launch choice needs to know of a GPU, known without having one."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Target:
    """A GPU. Sizes are in bytes; registers are 32-bit ones of a multiprocessor (SM); memory_rate is
    in bytes a clock of one multiprocessor."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    registers_per_multiprocessor: int
    l2_bytes: int
    memory_rate: float

    @property
    def has_wgmma(self) -> bool:
        """Hopper's warpgroup matrix instruction, which neither older nor newer GPUs have."""
        return self.capability == (9, 0)


# By the architecture that a kernel is compiled for: the GPU that is bought most for it
# (CUDA programming guide, table of technical specifications; NVIDIA's data sheets). Memory: 2.04
# TB/s at 1.41 GHz, 4.92 at 1.98, 8.0 at 1.965.
KNOWN = {
    "sm_80": Target("NVIDIA A100-SXM4-80GB", (8, 0), 108, 166_912, 167_936, 65_536, 40 << 20, 13.4),
    "sm_90a": Target("NVIDIA H200", (9, 0), 132, 232_448, 233_472, 65_536, 50 << 20, 18.8),
    "sm_100": Target("NVIDIA B200", (10, 0), 148, 232_448, 233_472, 65_536, 126 << 20, 27.5),
}
# Of memory that is the CPU's too, whose clock a driver need not tell: some 300 GB/s.
_INTEGRATED = 3.0


def of_device(device: torch.device) -> Target:
    """The GPU that ``device`` (with or without an index) is; read once a device."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return _of_index(index)


@functools.cache
def _of_index(index: int) -> Target:
    found: Any = torch.cuda.get_device_properties(index)  # torch types fewer fields than it has
    return Target(
        name=found.name,
        capability=(found.major, found.minor),
        multiprocessors=found.multi_processor_count,
        shared_per_block=found.shared_memory_per_block_optin,
        shared_per_multiprocessor=found.shared_memory_per_multiprocessor,
        registers_per_multiprocessor=found.regs_per_multiprocessor,
        l2_bytes=found.L2_cache_size,
        memory_rate=_memory_rate(found),
    )


def _memory_rate(found: Any) -> float:
    """Of ``torch.cuda.get_device_properties``: two transfers of the bus in a clock of the memory,
    over the highest clock of the multiprocessors. Where it has no such fields or they are 0, as of
    the known GPU of that generation or the last before."""
    names = "memory_clock_rate", "memory_bus_width", "clock_rate"
    memory_clock, bus, clock = (getattr(found, name, 0) for name in names)  # kHz, bits, kHz
    if memory_clock and bus and clock:
        return 2 * memory_clock * bus / 8 / (clock * found.multi_processor_count)
    if getattr(found, "is_integrated", 0):
        return _INTEGRATED
    here = (found.major, found.minor)
    older = [known for known in KNOWN.values() if known.capability <= here]
    return max(older or KNOWN.values(), key=lambda known: known.capability).memory_rate
