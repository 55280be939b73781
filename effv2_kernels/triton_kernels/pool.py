"""The head without its map: 1x1 convolution + norm + activation + global mean, ``conv_act_pool``.

Bytes: the input and the weights; FLOPs: 2 N P O C with P pixels an image. V2-S at 384 pixels, batch
128, bf16: 144 pixels, C = 256, O = 1280: 9.4 MB read (the map that is not written, and not read
again for the mean, would be 47 MB) and 12 GFLOP, 15 us at 790 TFLOP/s, which is the floor. One
image: 0.7 MB, nine tenths of it weights, and one or two launches.

Tile: BLOCK_M pixels of one image x BLOCK_N channels, whose rows are added up in registers, tile
after tile of the image's pixels, so no program needs another one's result and the order of the sum
is fixed. Few images spread an image over several programs, which write partial sums that
``finish_mean_kernel`` adds, in a fixed order too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate
from .gather import load_window
from .norm import scale_and_shift, spread


@triton.jit(do_not_specialize=["pixels"])
def conv_act_pool_kernel(
    x, weight, bias, mean, variance, gamma, beta, out, pixels,
    C: tl.constexpr, OUT: tl.constexpr, PARTIAL: tl.constexpr, EPS: tl.constexpr,
    ACT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    TILES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x: (N, pixels, C); weight: (OUT, C); bias to beta: (OUT,) or None; out: (N, OUT) means or, if
    PARTIAL, float32 (N, parts, OUT) sums over TILES tiles of BLOCK_M pixels each. Grid: (tiles of
    channels, parts, N)."""
    STEPS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    EVEN: tl.constexpr = C % BLOCK_K == 0
    part = tl.program_id(1)
    image = tl.program_id(2)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_rows = weight + tl.minimum(n, OUT - 1)[None, :] * C
    scale, shift = scale_and_shift(bias, mean, variance, gamma, beta, n, n < OUT, EPS)
    start = image * pixels
    if WIDE:
        start = start.to(tl.int64)

    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for tile in range(0, TILES):
        p = (part * TILES + tile) * BLOCK_M + tl.arange(0, BLOCK_M)
        base = (start + tl.minimum(p, pixels - 1)) * C
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for step in range(0, STEPS):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            a = load_window(x, base, base, base, 1, 1, k, C, 1, 1, EVEN, True)
            if EVEN:
                b = tl.load(weight_rows + k[:, None])
            else:
                b = tl.load(weight_rows + k[:, None], mask=k[:, None] < C, other=0.0)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
        if mean is not None:
            scale_here, shift_here = spread(scale, shift, tile)
        else:
            scale_here, shift_here = scale, shift
        y = activate(acc * scale_here[None, :] + shift_here[None, :], ACT, FAST)
        total += tl.sum(tl.where((p < pixels)[:, None], y, 0.0), axis=0)

    if PARTIAL:
        parts = tl.num_programs(1)
        tl.store(out + (image * parts + part) * OUT + n, total, mask=n < OUT)
    else:
        total = total / pixels.to(tl.float32)
        tl.store(out + image * OUT + n, total.to(out.dtype.element_ty), mask=n < OUT)


@triton.jit(do_not_specialize=["parts", "pixels"])
def finish_mean_kernel(
    partial, out, parts, pixels,
    C: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial: float32 (N, parts, C) sums; out: (N, C), their sum over ``pixels``; PARTS: ``parts``
    or more, a multiple of BLOCK_P. Adds in a fixed order. Bytes: the sums once, from L2; the floor
    is a launch. Grid: (tiles of BLOCK_C channels, N)."""
    image = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for first in range(0, PARTS, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        offsets = (image * parts + part)[:, None] * C + c[None, :]
        keep = (part < parts)[:, None] & (c < C)[None, :]
        total += tl.sum(tl.load(partial + offsets, mask=keep, other=0.0), axis=0)
    mean = total / pixels.to(tl.float32)
    tl.store(out + image * C + c, mean.to(out.dtype.element_ty), mask=c < C)
