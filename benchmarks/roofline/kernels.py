"""The kernels of a block when PyTorch runs it eagerly, when Inductor compiles it, and when it is
fused: bytes, FLOPs and special-function operations of each, for one image.

Weights are left out: at a batch worth counting they are read once for many images. Activations are
counted once for each kernel that reads or writes them, as if no cache carried anything from one
kernel to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..sized_blocks import Conv, SizedBlock, elements

#: Special-function instructions (exp, reciprocal) of a SiLU that is written x / (1 + exp(-x)).
SFU_PER_ACTIVATION = 2
#: Pixels of a 16x8 tile of depthwise outputs with its halo, over its outputs, when the 1x1 expand
#: is computed again for the halo (18 * 10 / 128).
HALO = 1.41


@dataclass(frozen=True)
class Kernel:
    """One launch. bytes: activations read and written; tensor: FLOPs that tensor cores can do;
    plain: other FLOPs worth counting; sfu: special-function operations."""

    name: str
    bytes: float = 0.0
    tensor: float = 0.0
    plain: float = 0.0
    sfu: float = 0.0


@dataclass(frozen=True)
class Level:
    """A way to run a network. ``kernels`` gives those of a block in order."""

    name: str
    title: str
    kernels: Callable[[SizedBlock, int], Iterator[Kernel]]


def sfu_of(conv: Conv) -> float:
    """Special-function operations of the activation after a convolution."""
    return SFU_PER_ACTIVATION * elements(conv.outputs) if conv.act in ("silu", "gelu") else 0.0


def convolution(
    conv: Conv, name: str, moved: float, *, sfu: float = 0.0, times: float = 1.0
) -> Kernel:
    """The kernel of a convolution that moves so many bytes, whatever else it does at its ends."""
    flops = 2.0 * conv.macs
    if conv.depthwise:
        return Kernel(name, moved, plain=flops, sfu=sfu)
    return Kernel(name, moved, tensor=flops, sfu=sfu)


def _eager(block: SizedBlock, size: int) -> Iterator[Kernel]:
    """Convolution, BN, activation, the squeeze, the multiplication and the sum: one kernel each."""
    for conv in block.convs:
        read, written = elements(conv.inputs) * size, elements(conv.outputs) * size
        if conv is block.convs[-1] and block.se_hidden:
            yield Kernel("squeeze", read)
            yield Kernel("gate")
            yield Kernel("multiply", 2 * read)
        yield convolution(conv, "conv", read + written)
        yield Kernel("batch norm", 2 * written)
        if conv.act != "none":
            yield Kernel("activation", 2 * written, sfu=sfu_of(conv))
    last = elements(block.outputs) * size
    if block.residual:
        yield Kernel("add", 3 * last)
    if block.role == "head":
        yield Kernel("pool", last)


def _compiled(block: SizedBlock, size: int) -> Iterator[Kernel]:
    """Convolutions are library calls; everything between two of them is one pass. The squeeze and
    the multiplication each compute BN and activation again from the convolution's output."""
    for i, conv in enumerate(block.convs):
        read, written = elements(conv.inputs) * size, elements(conv.outputs) * size
        last = i + 1 == len(block.convs)
        yield convolution(conv, "conv", read + written)
        if block.se_hidden and i + 2 == len(block.convs):
            yield Kernel("norm, activation, squeeze", written, sfu=sfu_of(conv))
            yield Kernel("gate")
            yield Kernel("norm, activation, multiply", 2 * written, sfu=sfu_of(conv))
        else:
            passes = 3 if last and block.residual else 2
            yield Kernel("norm, activation, add", passes * written, sfu=sfu_of(conv))
    if block.role == "head":
        yield Kernel("pool", elements(block.outputs) * size)


def _fused(block: SizedBlock, size: int) -> Iterator[Kernel]:
    """Every convolution with all that surrounds it: BN folded into it, activation, squeeze, gate
    and sum at its ends."""
    for i, conv in enumerate(block.convs):
        last = i + 1 == len(block.convs)
        moved = elements(conv.inputs) + (0 if block.role == "head" else elements(conv.outputs))
        if last and block.residual:
            moved += elements(conv.outputs)
        if last and block.se_hidden:
            yield Kernel("gate")
        yield convolution(conv, "conv with its ends", moved * size, sfu=sfu_of(conv))


def _on_chip(block: SizedBlock, size: int) -> Iterator[Kernel]:
    """As fused, and an expanded tensor that only the next convolution reads is never written."""
    first, last = block.convs[0], block.convs[-1]
    outputs = 0 if block.role == "head" else elements(last.outputs)
    if len(block.convs) < 3 and not block.se_hidden:
        moved = (elements(first.inputs) + outputs) * size
        sfu = sum(sfu_of(conv) for conv in block.convs)
        yield Kernel("block", moved, tensor=2.0 * sum(c.macs for c in block.convs), sfu=sfu)
        return
    *front, project = block.convs
    if len(front) == 2 and front[1].depthwise:
        expand, depthwise = front
        yield Kernel(
            "expand, depthwise, squeeze",
            (HALO * elements(expand.inputs) + elements(depthwise.outputs)) * size,
            tensor=2.0 * expand.macs * HALO,
            plain=2.0 * depthwise.macs,
            sfu=sfu_of(expand) * HALO + sfu_of(depthwise),
        )
    else:
        for conv in front:
            moved = (elements(conv.inputs) + elements(conv.outputs)) * size
            yield convolution(conv, "conv with its ends", moved, sfu=sfu_of(conv))
    if block.se_hidden:
        yield Kernel("gate")
    residual = elements(project.outputs) if block.residual else 0
    moved = (elements(project.inputs) + elements(project.outputs) + residual) * size
    yield convolution(project, "project with its ends", moved, sfu=sfu_of(project))


LEVELS = {
    level.name: level
    for level in (
        Level("eager", "eager", _eager),
        Level("compiled", "compiled", _compiled),
        Level("fused", "fused", _fused),
        Level("on_chip", "on chip", _on_chip),
    )
}
