"""What the Triton ops share before they launch: layouts, geometry, precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import aten
from . import interpreted

MOST_PIXELS = (1 << 31) - 1024  # pixels are counted in 32 bits, tiles beyond the last included
MOST_ELEMENTS = (1 << 31) - 1
_KINDS = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def why_not(
    x: Tensor, weight: Tensor, stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0, 0, 0)
) -> str | None:
    """Why the kernels take no such map, or give none; weight: of the window, in the op's dtype."""
    if weight.dtype not in _KINDS and weight.dtype != torch.float32:
        return f"it does not compute in {str(weight.dtype).removeprefix('torch.')}"
    found = window(x, tuple(weight.shape[2:]), stride, padding)
    pixels = max(found.height * found.width, found.out_height * found.out_width)
    if x.shape[0] * pixels > MOST_PIXELS:
        return "there are 2^31 pixels or more"
    return "there are no channels" if x.shape[1] == 0 else None


def kind(x: Tensor) -> str:
    """What multiplies, as in ``launch.dense.KINDS``; for the interpreter what has large tiles."""
    return _KINDS.get(x.dtype) or ("tf32" if interpreted() else "float32")


def precision(x: Tensor) -> str:
    """The ``input_precision`` of ``tl.dot``, which only float32 asks for."""
    return "tf32" if x.dtype != torch.float32 else "ieee"


def fast(act: str, x: Tensor) -> bool:
    """Whether to use the activation's 16-bit form, which the interpreter does not know."""
    return act == "silu" and x.dtype != torch.float32 and not interpreted()


def special(act: str) -> int:
    """Special functions an element that the activation takes."""
    return {"silu": 1, "gelu": 2}.get(act, 0)


def through_l1(x: Tensor, taps: int) -> bool:
    """Whether copies of a window's taps are to go through L1. On an H200 48 and 64 channels, whose
    pixels fill whole sectors, lose 2 to 50 % by it at most tiles, with the best among them; the
    best tile of 24 channels was 14 % faster than one of another shape without it."""
    return taps > 1 and x.shape[1] * x.element_size() < 64


def nhwc(x: Tensor) -> Tensor:
    """x, or a copy, whose elements lie as in a dense (N, H, W, C)."""
    return x.contiguous(memory_format=torch.channels_last)


def wide(*maps: Tensor) -> bool:
    """Whether an element of one of the maps is beyond what 32 bits count."""
    return any(x.numel() > MOST_ELEMENTS for x in maps)


def empty(x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised dense tensor on x's device, of x's dtype unless another is asked for."""
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device)


def empty_nhwc(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """An uninitialised (N, channels, height, width), channels_last."""
    return empty(x, x.shape[0], height, width, channels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Affine:
    """What becomes of a convolution's sums before the activation, as the kernels take it: (bias,
    mean, variance, gamma, beta), dense, and their EPS."""

    vectors: tuple[Tensor | None, ...] = (None,) * 5
    eps: float = 0.0


def affine(bias: Tensor | None, norm: Sequence[Tensor], eps: float) -> Affine:
    """norm: (mean, variance), with (gamma, beta) or without, or () for a bias alone, whose kernel
    is the same whatever ``eps`` is."""
    given = (bias, *norm, *(None,) * (4 - len(norm)))
    dense = tuple(None if vector is None else vector.contiguous() for vector in given)
    return Affine(dense, float(eps) if norm else 0.0)


@dataclass(frozen=True)
class Window:
    """A convolution's geometry on a map, as the kernels take it."""

    height: int
    width: int
    out_height: int
    out_width: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    plain: bool

    @property
    def numbers(self) -> tuple[int, ...]:
        """In the order of the kernels' arguments."""
        return (
            *(self.height, self.width, self.out_height, self.out_width),
            *(self.stride_h, self.stride_w, self.top, self.left),
        )


def window(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Window:
    """stride: (sh, sw); padding: (top, bottom, left, right), or () for TF SAME. ``plain``: the
    window of an output pixel is the input pixel of the same number."""
    top, _, left, _ = sides = aten.four_sides(x, kernel, stride, padding)
    out_height, out_width = aten.out_size(x, kernel, stride, sides)
    return Window(
        height=x.shape[2],
        width=x.shape[3],
        out_height=out_height,
        out_width=out_width,
        stride_h=stride[0],
        stride_w=stride[1],
        top=top,
        left=left,
        plain=(*kernel, *stride) == (1, 1, 1, 1) and not any(sides),
    )
