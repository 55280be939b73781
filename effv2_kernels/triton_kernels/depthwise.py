"""Depthwise convolution + norm + activation, and the squeeze in the same pass.

Bytes: the map in, the map out, nothing else to speak of; FLOPs: 2 k k for each output, which is
nothing for a tensor core and little for the others. Stage 5 of V2-S at 384 pixels, batch 128, bf16
(24 x 24 x 960): 283 MB, 66 us at 4.3 TB/s, which is the floor; the mean that squeeze-and-excite
wants would read half of it again.

Tile: BLOCK_P output pixels of one image x BLOCK_C channels, accumulators in registers; each tap is
a load of the whole tile, shifted, 16 bytes wide along the channels. A pixel is thus asked for k k
times: once from memory, then from L1 (a tile of 32 x 64 in 16 bits and its two rows around fit).
A program goes through TILES tiles of an image and keeps the sums for the squeeze, which
``finish_mean_kernel`` adds in a fixed order. The native kernel keeps the window in registers
instead; this one is for an install without nvcc.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate
from .norm import scale_and_shift

_RUN_TIME = [
    *("height", "width", "out_height", "out_width"),
    *("stride_h", "stride_w", "top", "left"),
]


@triton.jit(do_not_specialize=_RUN_TIME)
def depthwise_kernel(
    x, weight, bias, mean, variance, gamma, beta, out, partial,
    height, width, out_height, out_width, stride_h, stride_w, top, left,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SQUEEZE: tl.constexpr,
    EPS: tl.constexpr, ACT: tl.constexpr, FAST: tl.constexpr, WIDE: tl.constexpr,
    TILES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x: (N, H, W, C); weight: (C, KH, KW); bias to beta: (C,) or None; out: (N, H', W', C);
    partial: float32 (N, parts, C) sums of the output if SQUEEZE. Grid: (tiles of channels, parts,
    N)."""
    part = tl.program_id(1)
    image = tl.program_id(2)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < C
    pixels = out_height * out_width
    start = image
    if WIDE:
        start = start.to(tl.int64)

    total = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for tile in range(0, TILES):
        p = (part * TILES + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        first_h = (p // out_width) * stride_h - top
        first_w = (p % out_width) * stride_w - left
        base = ((start * height + first_h) * width + first_w) * C
        acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
        for tap_h in tl.static_range(KH):
            for tap_w in tl.static_range(KW):
                h = first_h + tap_h
                w = first_w + tap_w
                inside = (h >= 0) & (h < height) & (w >= 0) & (w < width) & (p < pixels)
                offsets = (base + (tap_h * width + tap_w) * C)[:, None] + c[None, :]
                value = tl.load(x + offsets, mask=inside[:, None] & known[None, :], other=0.0)
                tap = tl.load(weight + c * (KH * KW) + tap_h * KW + tap_w, mask=known, other=0.0)
                acc += value.to(tl.float32) * tap.to(tl.float32)[None, :]
        # Here and not ahead of the taps, which need all registers there are.
        scale, shift = scale_and_shift(bias, mean, variance, gamma, beta, c, known, EPS)
        y = activate(acc * scale[None, :] + shift[None, :], ACT, FAST)
        offsets = (start * pixels + p)[:, None] * C + c[None, :]
        keep = (p < pixels)[:, None] & known[None, :]
        tl.store(out + offsets, y.to(out.dtype.element_ty), mask=keep)
        if SQUEEZE:
            total += tl.sum(tl.where(keep, y, 0.0), axis=0)

    if SQUEEZE:
        parts = tl.num_programs(1)
        tl.store(partial + (image * parts + part) * C + c, total, mask=known)
