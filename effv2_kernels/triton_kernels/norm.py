"""Bias and batch norm of a convolution: one multiply-add on its float32 sums."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scale_and_shift(bias, mean, variance, gamma, beta, c, known, EPS: tl.constexpr):
    """Of channels c, in float32: conv(x) * scale + shift is conv(x) + bias, normalised.

    bias to beta: (channels,) of any floating dtype, or None; mean and variance are both there or
    neither, and scale is then a constant 1, which the compiler leaves out. known: which of c are
    channels (the others become 1 and 0), or None: all. ``rsqrt`` is one instruction, good to
    2^-22.9.
    """
    shift = tl.zeros(c.shape, dtype=tl.float32)
    if bias is not None:
        shift = _load(bias, c, known, 0.0)
    if mean is not None:
        scale = tl.rsqrt(_load(variance, c, known, 1.0) + EPS)
        if gamma is not None:
            scale *= _load(gamma, c, known, 1.0)
        shift = (shift - _load(mean, c, known, 0.0)) * scale
        if beta is not None:
            shift += _load(beta, c, known, 0.0)
    else:
        scale = tl.full(c.shape, 1.0, dtype=tl.float32)
    return scale, shift


@triton.jit
def spread(scale, shift, turn):
    """The same numbers, for the tile of a matrix product. turn: 0 or more; the number of a loop's
    turn where they are used in one.

    A thread holds a quarter of such a tile's columns, or all, and the compiler would have each
    compute their scales again, in as many loads and square roots; it does not look through a
    gather. In pairs, because there is then one exchange, after which numbers are fetched where they
    are used: two exchanges hold the first one's numbers in registers through the second. So would a
    loop that they were fetched before.
    """
    low = scale.to(tl.uint32, bitcast=True).to(tl.uint64)
    high = shift.to(tl.uint32, bitcast=True).to(tl.uint64)
    index = tl.arange(0, scale.shape[0]) + tl.minimum(turn, 0)
    pair = tl.gather(low | (high << 32), index, 0)
    scale = pair.to(tl.uint32).to(tl.float32, bitcast=True)
    shift = (pair >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
    return scale, shift


@triton.jit
def normalise(acc, bias, mean, variance, gamma, beta, c, known, EPS: tl.constexpr):
    """acc: a product's (rows, channels), those channels being c. All else as above."""
    scale, shift = scale_and_shift(bias, mean, variance, gamma, beta, c, known, EPS)
    if mean is not None:
        scale, shift = spread(scale, shift, 0)
    return acc * scale[None, :] + shift[None, :]


@triton.jit
def _load(vector, c, known, OTHER: tl.constexpr):
    values = tl.load(vector + c) if known is None else tl.load(vector + c, mask=known, other=OTHER)
    return values.to(tl.float32)
