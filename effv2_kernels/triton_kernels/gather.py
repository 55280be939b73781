"""Where the elements of an implicit GEMM's A operand lie: rows are output pixels, columns are
(tap row, tap column, channel), counted through as they lie in a row of the weights."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate(
    m, rows, height, width, out_height, out_width, stride_h, stride_w, top, left,
    C: tl.constexpr, WIDE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """m: (BLOCK_M,) output pixels, those past the last one taken for the last. Returns the row and
    column of each window's first tap (negative in the padding), and where that tap's channel 0
    lies.

    WIDE: count elements in 64 bits, for maps of 2^31 and more. PLAIN: the window is the pixel m
    itself, and needs none of the divisions.
    """
    m = tl.minimum(m, rows - 1)
    if PLAIN:
        return m, m, (m.to(tl.int64) if WIDE else m) * C
    column = m % out_width
    row = m // out_width
    image = row // out_height
    first_h = (row % out_height) * stride_h - top
    first_w = column * stride_w - left
    if WIDE:
        image = image.to(tl.int64)
    base = ((image * height + first_h) * width + first_w) * C
    return first_h, first_w, base


@triton.jit
def load_window(
    x, base, first_h, first_w, height, width, k,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, EVEN: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """The (BLOCK_M, BLOCK_K) tile of A at columns k, 0 in the padding and past the last column.

    EVEN: no column lies past the last one. PLAIN: every window is one pixel of the map. Dividing k
    by a constant C leaves the compiler runs of channels that it can prove contiguous, which is what
    makes these loads 16 bytes wide (C a multiple of 8).
    """
    if KH * KW == 1:
        offsets = base[:, None] + k[None, :]
        if PLAIN:
            if EVEN:
                tile = tl.load(x + offsets)
            else:
                tile = tl.load(x + offsets, mask=k[None, :] < C, other=0.0)
        else:
            inside = (first_h >= 0) & (first_h < height) & (first_w >= 0) & (first_w < width)
            tile = tl.load(x + offsets, mask=inside[:, None] & (k[None, :] < C), other=0.0)
    else:
        tap = k // C
        tap_h = tap // KW
        tap_w = tap % KW
        offsets = base[:, None] + ((tap_h * width + tap_w) * C + k % C)[None, :]
        h = first_h[:, None] + tap_h[None, :]
        w = first_w[:, None] + tap_w[None, :]
        inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
        if not EVEN:
            inside = inside & (tap[None, :] < KH * KW)
        tile = tl.load(x + offsets, mask=inside, other=0.0)
    return tile


@triton.jit
def load_columns(rows, k, K: tl.constexpr, EVEN: tl.constexpr):
    """Columns k of one row, or of ``rows`` that lie along the second axis: 0 past the last one."""
    offsets = k if len(rows.shape) == 0 else k[:, None]
    if EVEN:
        return tl.load(rows + offsets)
    return tl.load(rows + offsets, mask=offsets < K, other=0.0)
