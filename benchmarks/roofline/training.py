"""The kernels of a block in a training step, forward and backward, without the optimizer: as
PyTorch runs them eagerly, as Inductor compiles them, and fused so that only the convolutions' raw
outputs are kept. Counted as in ``kernels``.

Batch norm needs the statistics of a whole map before it can be applied, so no form keeps an
expanded tensor on chip: the fused one computes statistics where a map is written, and normalises
and activates where it is read.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..sized_blocks import Conv, SizedBlock, elements
from .kernels import Kernel, Level, convolution, sfu_of


def _eager(block: SizedBlock, size: int) -> Iterator[Kernel]:
    convs = block.convs
    for conv in convs:
        read, written = elements(conv.inputs) * size, elements(conv.outputs) * size
        if conv is convs[-1] and block.se_hidden:
            yield Kernel("squeeze", read)
            yield Kernel("gate")
            yield Kernel("multiply", 2 * read)
        yield convolution(conv, "conv", read + written)
        yield Kernel("statistics", written)
        yield Kernel("batch norm", 2 * written)
        if conv.act != "none":
            yield Kernel("activation", 2 * written, sfu=sfu_of(conv))
    last = elements(block.outputs) * size
    if block.residual:
        yield Kernel("add", 3 * last)
    if block.role == "head":
        yield Kernel("pool", last)
    for conv in reversed(convs):
        read, written = elements(conv.inputs) * size, elements(conv.outputs) * size
        if conv.act != "none":
            pooled = written if block.role == "head" else 0.0
            yield Kernel("activation's gradient", 3 * written + pooled, sfu=sfu_of(conv))
        yield Kernel("batch norm's sums", 2 * written)
        yield Kernel("batch norm's gradient", 3 * written)
        yield from _gradients(block, conv, read, written)
        if conv is convs[-1] and block.se_hidden:
            yield Kernel("multiply's gradient", 2 * read)
            yield Kernel("gate's gradient: products", 3 * read)
            yield Kernel("gate's gradient: sums", read)
            yield Kernel("gate backward")
            yield Kernel("squeeze's gradient, added", 4 * read)
    if block.residual:
        yield Kernel("sum of the gradients", 3 * elements(block.inputs) * size)


def _compiled(block: SizedBlock, size: int) -> Iterator[Kernel]:
    for i, conv in enumerate(block.convs):
        read, written = elements(conv.inputs) * size, elements(conv.outputs) * size
        yield convolution(conv, "conv", read + written)
        yield Kernel("statistics", written)
        if block.se_hidden and i + 2 == len(block.convs):
            yield Kernel("norm, activation, squeeze", written, sfu=sfu_of(conv))
            yield Kernel("gate")
            yield Kernel("norm, activation, multiply", 2 * written, sfu=sfu_of(conv))
        else:
            passes = 3 if i + 1 == len(block.convs) and block.residual else 2
            yield Kernel("norm, activation, add", passes * written, sfu=sfu_of(conv))
    if block.role == "head":
        yield Kernel("pool", elements(block.outputs) * size)
    for i, conv in reversed(list(enumerate(block.convs))):
        read, written = elements(conv.inputs) * size, elements(conv.outputs) * size
        if block.se_hidden and i + 2 == len(block.convs):
            yield Kernel("gate's gradient", 2 * written, sfu=sfu_of(conv))
        yield Kernel("norm and activation: sums", 2 * written, sfu=sfu_of(conv))
        yield Kernel("norm and activation: gradient", 3 * written, sfu=sfu_of(conv))
        yield from _gradients(block, conv, read, written)


def _fused(block: SizedBlock, size: int) -> Iterator[Kernel]:
    before = (None, *block.convs[:-1])
    for previous, conv in zip(before, block.convs, strict=True):
        read, written = elements(conv.inputs) * size, elements(conv.outputs) * size
        activated = sfu_of(previous) if previous is not None else 0.0
        if conv is block.convs[-1] and block.se_hidden:
            yield Kernel("squeeze of the raw map", read, sfu=activated)
            yield Kernel("gate")
        yield convolution(conv, "conv of the raw map, statistics", read + written, sfu=activated)
    last = block.convs[-1]
    outputs = elements(last.outputs) * size
    passes = 1 if block.role == "head" else 3 if block.residual else 2
    yield Kernel("norm, activation, add or pool", passes * outputs, sfu=sfu_of(last))
    yield Kernel("norm and activation: sums", 2 * outputs, sfu=sfu_of(last))
    yield Kernel("norm and activation: gradient", 3 * outputs, sfu=sfu_of(last))
    for previous, conv in reversed(list(zip(before, block.convs, strict=True))):
        yield from _fused_backward(block, previous, conv, size)


def _fused_backward(
    block: SizedBlock, previous: Conv | None, conv: Conv, size: int
) -> Iterator[Kernel]:
    """The gradients of one convolution, with those of the norm and activation before it where the
    epilogue can take them."""
    read, written = elements(conv.inputs) * size, elements(conv.outputs) * size
    if previous is None:
        if conv.depthwise:
            yield _depthwise_backward(conv, read, written, sfu_of(conv))
        else:
            yield from _gradients(block, conv, read, written)
        return
    activated = sfu_of(previous)
    if conv.depthwise:
        yield _depthwise_backward(conv, read, written, sfu_of(conv) + activated)
        yield Kernel("norm: gradient", 3 * read)
        return
    yield convolution(conv, "data gradient, its sums", written + 2 * read, sfu=activated)
    yield convolution(conv, "weight gradient", written + read, sfu=activated)
    if block.se_hidden:  # the sums of the norm wait for the gate's gradient
        yield Kernel("norm and activation: sums", 2 * read, sfu=activated)
    elif not previous.depthwise:
        yield Kernel("norm: gradient", 3 * read)


def _depthwise_backward(conv: Conv, read: float, written: float, sfu: float) -> Kernel:
    """Both gradients in one kernel that reads each tensor once."""
    return Kernel("depthwise backward", 2 * written + 2 * read, plain=4.0 * conv.macs, sfu=sfu)


def _gradients(block: SizedBlock, conv: Conv, read: float, written: float) -> Iterator[Kernel]:
    """Of the input, unless that is the image, and of the weight."""
    if block.role != "stem":
        yield convolution(conv, "data gradient", read + written)
    yield convolution(conv, "weight gradient", read + written)


TRAINING = {
    level.name: level
    for level in (
        Level("eager", "eager", _eager),
        Level("compiled", "compiled", _compiled),
        Level("fused", "fused", _fused),
    )
}
