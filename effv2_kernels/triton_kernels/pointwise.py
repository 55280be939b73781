"""1x1 convolution by programs that keep their weights and stream pixels: ``conv_bias_act`` where a
pixel has few channels.

Bytes and FLOPs are those of ``conv``. Such a convolution is one to five steps of a product, so that
``conv`` spends its time on the ends of a program: on an H200 the expansion of 160 channels to 960
(73728 pixels, bf16) took 113 us, of which memory needs 40, with DRAM 26 % busy, L2 58 %, issue
slots 27 %: warps waited for loads. Here a program is there to the end of the kernel. It loads the
weights of BLOCK_N channels once, into shared memory, and walks tiles of BLOCK_M pixels: while one
is normalised, activated and stored, the next ones are on their way, as many as there are stages.
That takes 83 us: DRAM is 35 % busy, and warps wait at the barriers of the shared memory in which
accumulators are brought into the order of the output.

Channels are BLOCK_K, a power of two, or BLOCK_K + BLOCK_L: 160 are 128 + 32. Programs whose numbers
are neighbours have the same pixels at the same time, and find them in L2. Only for Hopper, whose
matrix instructions read both operands from shared memory: elsewhere the weights would have to stay
in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate
from .norm import scale_and_shift, spread


@triton.jit(do_not_specialize=["rows", "streams"])
def pointwise_kernel(
    x, weight, bias, mean, variance, gamma, beta, residual, out, rows, streams,
    C: tl.constexpr, OUT: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
    ACT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """x: (rows, C), C = BLOCK_K + BLOCK_L; weight: (OUT, C); bias to beta: (OUT,) or None;
    residual, out: (rows, OUT). Grid: (tiles of channels times streams,): of each tile of channels
    ``streams`` programs share the pixels."""
    TILES_N: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    n = (pid % TILES_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    weight_rows = weight + tl.minimum(n, OUT - 1)[None, :] * C
    b = tl.load(weight_rows + k[:, None])
    if BLOCK_L > 0:
        more_k = BLOCK_K + tl.arange(0, BLOCK_L)
        more_b = tl.load(weight_rows + more_k[:, None])
    scale, shift = scale_and_shift(bias, mean, variance, gamma, beta, n, n < OUT, EPS)
    tiles = (rows + BLOCK_M - 1) // BLOCK_M
    for tile in range(pid // TILES_N, tiles, streams):
        m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        pixels = m.to(tl.int64) if WIDE else m
        x_rows = x + tl.minimum(pixels, rows - 1)[:, None] * C
        acc = tl.dot(tl.load(x_rows + k[None, :]), b, input_precision=PRECISION)
        if BLOCK_L > 0:
            acc = tl.dot(tl.load(x_rows + more_k[None, :]), more_b, acc, input_precision=PRECISION)
        tile_scale, tile_shift = spread(scale, shift, tile)
        acc = activate(acc * tile_scale[None, :] + tile_shift[None, :], ACT, FAST)
        offsets = pixels[:, None] * OUT + n[None, :]
        keep = (m < rows)[:, None] & (n < OUT)[None, :]
        if RESIDUAL:
            acc += tl.load(residual + offsets, mask=keep, other=0.0).to(tl.float32)
        tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=keep)
