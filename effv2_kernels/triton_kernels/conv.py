"""Dense convolution as an implicit GEMM, its A operand gated or not: ``conv_bias_act`` and
``gated_project``.

Bytes: the input, the weights, the output (and the residual) once; FLOPs: 2 M O K with M output
pixels, O output channels and K = kh kw C. V2-S at 384 pixels, batch 128, bf16: the expansion of
stage 5 (M = 73728, C = 160, O = 960) moves 166 MB and does 22.6 GFLOP; its projection moves as
much. On an H200 (4.3 TB/s, 790 TFLOP/s) that is 39 us of memory against 29 us of arithmetic, so
1x1 convolutions are at the ridge and every pass saved counts; 3x3 ones with C = 64, O = 256 do
9 times the arithmetic for the same bytes and are bound by the tensor cores.

Tile: BLOCK_M pixels x BLOCK_N channels of float32 accumulators in registers, K in steps of
BLOCK_K through shared memory (loads are pipelined into ``cp.async``). 128 x 128 and more lets
Hopper's ``wgmma`` (64 rows a warpgroup) run from shared memory; few rows get small tiles, and K
split over SPLIT_K programs whose partial sums a second kernel adds in a fixed order: 144 pixels
(12 x 12, one image) by 256 channels are 12 tiles of 64 x 64 for 132 multiprocessors.

Tiles of channels are BLOCK_N wide, or BLOCK_N + BLOCK_R, two products of one A tile: 160 channels
are 128 + 32, where two tiles of 128 would read A twice and multiply 60 % more. On an H200 L2 seems
to be what bounds these kernels (their bytes over measured times are 4 to 5 TB/s out of it; no
counter was read), so A is to be read once. Taps of few channels are read again out of L1
(THROUGH_L1).

The gate has one row an image, and a tile of pixels lies in IMAGES of them, one or two: those rows
are loaded, not one for each pixel (IMAGES = 0: more than two images).

K counts taps and channels through, so that a 3x3 window of C = 24 is 216 columns (padded to 224 or
256) and not 9 times 32 = 288, and so that no tap needs a loop of its own. Neighbouring programs
share their pixels: they find them in L2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate
from .gather import load_columns, load_window, locate
from .norm import normalise, scale_and_shift

_RUN_TIME = [
    *("rows", "height", "width", "out_height", "out_width"),
    *("stride_h", "stride_w", "top", "left"),
]


@triton.jit(do_not_specialize=_RUN_TIME)
def conv_kernel(
    x, weight, bias, mean, variance, gamma, beta, gate, residual, out,
    rows, height, width, out_height, out_width, stride_h, stride_w, top, left,
    C: tl.constexpr, OUT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, PLAIN: tl.constexpr,
    GATED: tl.constexpr, IMAGES: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
    ACT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    THROUGH_L1: tl.constexpr, SPLIT_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x: (N, H, W, C); weight: (OUT, KH, KW, C); bias to beta: (OUT,) or None; gate: (N, C) if
    GATED; residual, out: (N, H', W', OUT). With SPLIT_K > 1, out is float32 (SPLIT_K, N, H', W',
    OUT), partial sums that ``finish_split_kernel`` ends. Grid: (tiles of pixels times tiles of
    channels, SPLIT_K)."""
    K: tl.constexpr = KH * KW * C
    WIDTH: tl.constexpr = BLOCK_N + BLOCK_R
    TILES_N: tl.constexpr = (OUT + WIDTH - 1) // WIDTH
    STEPS: tl.constexpr = (K + BLOCK_K * SPLIT_K - 1) // (BLOCK_K * SPLIT_K)
    EVEN: tl.constexpr = K % (BLOCK_K * SPLIT_K) == 0

    pid = tl.program_id(0)
    split = tl.program_id(1)
    m = (pid // TILES_N) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (pid % TILES_N) * WIDTH + tl.arange(0, BLOCK_N)
    first_h, first_w, base = locate(
        m, rows, height, width, out_height, out_width, stride_h, stride_w, top, left, C, WIDE, PLAIN
    )
    weight_rows = weight + tl.minimum(n, OUT - 1)[None, :] * K
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if BLOCK_R > 0:
        r = (pid % TILES_N) * WIDTH + BLOCK_N + tl.arange(0, BLOCK_R)
        more_rows = weight + tl.minimum(r, OUT - 1)[None, :] * K
        more = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    if GATED:
        image = tl.minimum(m, rows - 1) // (height * width)
        if IMAGES > 0:
            first = (pid // TILES_N) * BLOCK_M // (height * width)
            second = (image != first)[:, None]
            first_gate = gate + first * C
            second_gate = gate + tl.minimum(first + 1, (rows - 1) // (height * width)) * C
        else:
            gate_rows = gate + image[:, None] * C

    for step in range(0, STEPS):
        k = (split * STEPS + step) * BLOCK_K + tl.arange(0, BLOCK_K)
        a = load_window(x, base, first_h, first_w, height, width, k, C, KH, KW, EVEN, PLAIN)
        b = load_columns(weight_rows, k, K, EVEN)
        if GATED:
            if IMAGES > 0:
                g = load_columns(first_gate, k, K, EVEN)[None, :]
                if IMAGES > 1:
                    g = tl.where(second, load_columns(second_gate, k, K, EVEN)[None, :], g)
            elif EVEN:
                g = tl.load(gate_rows + k[None, :])
            else:
                g = tl.load(gate_rows + k[None, :], mask=k[None, :] < K, other=0.0)
            a = a * g
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        if BLOCK_R > 0:
            more = tl.dot(a, load_columns(more_rows, k, K, EVEN), more, input_precision=PRECISION)

    pixels = m.to(tl.int64) if WIDE else m
    inside = m < rows
    if SPLIT_K > 1:
        out += split.to(tl.int64) * rows * OUT
    if BLOCK_R > 0:  # before the other: ptxas then has registers enough
        _finish(
            more, pixels, inside, r, bias, mean, variance, gamma, beta, residual, out,
            OUT, RESIDUAL, EPS, ACT, FAST, SPLIT_K,
        )  # fmt: skip
    _finish(
        acc, pixels, inside, n, bias, mean, variance, gamma, beta, residual, out,
        OUT, RESIDUAL, EPS, ACT, FAST, SPLIT_K,
    )  # fmt: skip


@triton.jit
def _finish(
    acc, pixels, inside, n, bias, mean, variance, gamma, beta, residual, out,
    OUT: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr, ACT: tl.constexpr,
    FAST: tl.constexpr, SPLIT_K: tl.constexpr,
):  # fmt: skip
    """Norm, activation and residual of a tile of channels n, unless it is a partial sum; stores."""
    offsets = pixels[:, None] * OUT + n[None, :]
    keep = inside[:, None] & (n < OUT)[None, :]
    if SPLIT_K == 1:
        acc = normalise(acc, bias, mean, variance, gamma, beta, n, n < OUT, EPS)
        acc = activate(acc, ACT, FAST)
        if RESIDUAL:
            acc += tl.load(residual + offsets, mask=keep, other=0.0).to(tl.float32)
    tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=["elements"])
def finish_split_kernel(
    partial, bias, mean, variance, gamma, beta, residual, out, elements,
    OUT: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr, ACT: tl.constexpr,
    FAST: tl.constexpr, SPLIT_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the SPLIT_K partial sums in order, then norm, activation and residual. Bytes: the
    partial sums, which are in L2, once; no arithmetic to speak of. partial: float32 (SPLIT_K,
    elements); residual, out: (elements,) with channels last. Grid: (tiles of BLOCK elements,)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = i < elements
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in tl.static_range(SPLIT_K):
        total += tl.load(partial + split * elements + i, mask=keep, other=0.0)
    scale, shift = scale_and_shift(bias, mean, variance, gamma, beta, i % OUT, keep, EPS)
    total = total * scale + shift
    total = activate(total, ACT, FAST)
    if RESIDUAL:
        total += tl.load(residual + i, mask=keep, other=0.0).to(tl.float32)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=keep)
