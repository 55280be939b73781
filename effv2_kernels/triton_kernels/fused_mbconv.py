"""A whole Fused-MBConv block on the chip: k x k expand + norm + activation + 1x1 project + norm
(+ input).

Bytes: input, weights and output once, 2 (C + O) M in 16 bits; FLOPs: 2 M E (k k C + O). Stage 3 of
V2-S at 384 pixels, batch 128 (C = 64, E = 256, O = 64, M = 48 x 48 x 128 = 295 k): 75 MB and 97
GFLOP: on an H200 18 us of memory, 122 us of tensor cores (at 790 TFLOP/s) and, with one
special-function instruction for each SiLU, 20 us of that unit. So tensor cores are the floor;
writing and reading the expanded tensor (302 MB) would add 70 us.

Tile: BLOCK_M pixels; the E expanded channels come in chunks of BLOCK_E (or of BLOCK_E + BLOCK_F,
two products of one gathered tile: 96 are 64 + 32), as the keys of attention do. For each chunk a
GEMM over K = k k C fills BLOCK_M x BLOCK_E float32 accumulators, norm and activation are applied
there, and the rounded result is at once the A operand, from registers, of a second product that
adds into BLOCK_M x BLOCK_O accumulators. BLOCK_O covers all O channels: 128 pixels, 128 expanded
and 64 output channels take 64 + 32 registers of each of 256 threads.

Each program reads all weights, from L2: 2 E (k k C + O) bytes for 2 BLOCK_M E (k k C + O) FLOPs,
that is 1 byte for BLOCK_M FLOPs, 6.2 TB/s at the full rate for 128 pixels. That is why large tiles
are worth their registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate
from .gather import load_columns, load_window, locate
from .norm import normalise

_RUN_TIME = [
    *("rows", "height", "width", "out_height", "out_width"),
    *("stride_h", "stride_w", "top", "left"),
]


@triton.jit(do_not_specialize=_RUN_TIME)
def fused_mbconv_kernel(
    x, expand_weight, expand_bias, expand_mean, expand_variance, expand_gamma, expand_beta,
    project_weight, project_bias, project_mean, project_variance, project_gamma, project_beta, out,
    rows, height, width, out_height, out_width, stride_h, stride_w, top, left,
    C: tl.constexpr, E: tl.constexpr, OUT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    PLAIN: tl.constexpr, RESIDUAL: tl.constexpr, EXPAND_EPS: tl.constexpr,
    PROJECT_EPS: tl.constexpr, ACT: tl.constexpr, FAST: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, THROUGH_L1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
):  # fmt: skip
    """x: (N, H, W, C); expand_weight: (E, KH, KW, C), what follows it: (E,) or None;
    project_weight: (OUT, E), what follows it: (OUT,) or None; out: (N, H', W', OUT). RESIDUAL adds
    x, which then has out's shape. Grid: (tiles of pixels,)."""
    K: tl.constexpr = KH * KW * C
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    CHUNK: tl.constexpr = BLOCK_E + BLOCK_F
    CHUNKS: tl.constexpr = (E + CHUNK - 1) // CHUNK
    EVEN: tl.constexpr = K % BLOCK_K == 0

    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tl.arange(0, BLOCK_O)
    first_h, first_w, base = locate(
        m, rows, height, width, out_height, out_width, stride_h, stride_w, top, left, C, WIDE, PLAIN
    )
    project_rows = project_weight + tl.minimum(o, OUT - 1)[None, :] * E

    acc = tl.zeros((BLOCK_M, BLOCK_O), dtype=tl.float32)
    for chunk in range(0, CHUNKS):
        e = chunk * CHUNK + tl.arange(0, BLOCK_E)
        expand_rows = expand_weight + tl.minimum(e, E - 1)[None, :] * K
        hidden = tl.zeros((BLOCK_M, BLOCK_E), dtype=tl.float32)
        if BLOCK_F > 0:
            f = chunk * CHUNK + BLOCK_E + tl.arange(0, BLOCK_F)
            more_rows = expand_weight + tl.minimum(f, E - 1)[None, :] * K
            more = tl.zeros((BLOCK_M, BLOCK_F), dtype=tl.float32)
        for step in range(0, STEPS):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            a = load_window(x, base, first_h, first_w, height, width, k, C, KH, KW, EVEN, PLAIN)
            b = load_columns(expand_rows, k, K, EVEN)
            hidden = tl.dot(a, b, hidden, input_precision=PRECISION)
            if BLOCK_F > 0:
                b = load_columns(more_rows, k, K, EVEN)
                more = tl.dot(a, b, more, input_precision=PRECISION)
        hidden = _activated(
            hidden, expand_bias, expand_mean, expand_variance, expand_gamma, expand_beta, e,
            E, EXPAND_EPS, ACT, FAST, CHUNK,
        )  # fmt: skip
        p = load_columns(project_rows, e, E, E % CHUNK == 0)
        acc = tl.dot(hidden.to(x.dtype.element_ty), p, acc, input_precision=PRECISION)
        if BLOCK_F > 0:
            more = _activated(
                more, expand_bias, expand_mean, expand_variance, expand_gamma, expand_beta, f,
                E, EXPAND_EPS, ACT, FAST, CHUNK,
            )  # fmt: skip
            p = load_columns(project_rows, f, E, E % CHUNK == 0)
            acc = tl.dot(more.to(x.dtype.element_ty), p, acc, input_precision=PRECISION)

    offsets = (m.to(tl.int64) if WIDE else m)[:, None] * OUT + o[None, :]
    keep = (m < rows)[:, None] & (o < OUT)[None, :]
    acc = normalise(
        acc, project_bias, project_mean, project_variance, project_gamma, project_beta, o, o < OUT,
        PROJECT_EPS,
    )  # fmt: skip
    if RESIDUAL:
        acc += tl.load(x + offsets, mask=keep, other=0.0).to(tl.float32)
    tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=keep)


@triton.jit
def _activated(
    hidden, bias, mean, variance, gamma, beta, e,
    E: tl.constexpr, EPS: tl.constexpr, ACT: tl.constexpr, FAST: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """act(norm(hidden)) of expanded channels e: those past the last one are copies of it, as
    finite as it is, and become 0."""
    known = tl.minimum(e, E - 1)
    hidden = normalise(hidden, bias, mean, variance, gamma, beta, known, None, EPS)
    hidden = activate(hidden, ACT, FAST)
    if E % CHUNK != 0:
        hidden = tl.where((e < E)[None, :], hidden, 0.0)
    return hidden
