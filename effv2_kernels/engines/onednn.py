"""The CPU backend: oneDNN's convolution with the activation and the residual fused into it.

It is what Inductor calls, with two things added: the weights are packed once for the shape at hand
(not for every call), and the blocks need no pass of their own for BN, activation or residual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from .. import _torch
from .._torch import onednn_enabled
from . import aten

# Above about this size a temporary of a batch costs more in page faults than in arithmetic.
TEMPORARY_BYTES = 5 << 20


def images_at_a_time(batch: int, bytes_per_image: int) -> int:
    """Into how large, even parts to split a batch whose temporary takes so much per image."""
    at_most = max(1, TEMPORARY_BYTES // max(bytes_per_image, 1))
    parts = -(-batch // at_most)
    return -(-batch // max(parts, 1)) or 1


# How oneDNN names the activations that it fuses: attribute, scalars, algorithm.
_ONEDNN_ACTS: dict[str, tuple[str, list, str]] = {
    "none": ("none", [], ""),
    "silu": ("swish", [], ""),
    "hardswish": ("hardswish", [], ""),
    "gelu": ("gelu", [], "none"),
}
# Not fused: oneDNN's relu and hardtanh turn NaN into a number.
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "relu6": lambda y: y.clamp_(0, 6),
}


@cache
def onednn_dtypes() -> frozenset[torch.dtype]:
    """The dtypes that oneDNN convolves natively on this processor; others go through ATen."""
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    found = {torch.float32}
    found.update(kind for kind in (torch.bfloat16, torch.float16) if _torch.onednn_has(kind))
    return frozenset(found)


def runs_onednn(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether oneDNN computes on x, in ``dtype`` or in its own."""
    return (dtype or x.dtype) in onednn_dtypes() and x.numel() > 0 and onednn_enabled()


def why_not(tensor: Tensor) -> str | None:
    """Why oneDNN does not compute in tensor's dtype."""
    if tensor.dtype in onednn_dtypes() and onednn_enabled():
        return None
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"oneDNN computes no {kind} here" if onednn_enabled() else "oneDNN is switched off"


def prepack(
    weight: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
) -> Tensor:
    """weight, (O, I / groups, kh, kw), in the blocked layout that oneDNN prefers for inputs of
    ``shape`` (N, I, H, W). The layout depends on the shape: weights packed for another batch or
    image size give the right result but are converted at each call (up to 1.5 x the time of V2-S).
    """
    kernel = weight.shape[2:]
    top, bottom, left, right = aten.four_sides(
        torch.empty(tuple(shape), device="meta"), kernel, stride, padding
    )
    n, channels, height, width = shape
    if (top, left) != (bottom, right):
        height, width = height + top + bottom, width + left + right
        top = left = 0
    return _torch.onednn_pack(
        weight, [top, left], list(stride), [1, 1], groups, [n, channels, height, width]
    )


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Sequence[Tensor] = (),
    eps: float = 0.0,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    act: str = "none",
    groups: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """act(norm(conv(x, weight) + bias)) + residual, channels_last; weight may be prepacked where
    the norm is folded into it, as our own runners have it. Else it is folded here, in float32: in
    16 bits a norm of its own is closer than a weight that is rounded twice."""
    if not runs_onednn(x) or (norm and x.dtype != torch.float32):
        return aten.conv(x, weight, bias, norm, eps, stride, padding, act, groups, residual)
    if norm:
        weight, bias = aten.folded(weight, bias, norm, eps)
    x, symmetric = aten.pad_uneven(x, weight.shape[2:], stride, padding)
    x = x.contiguous(memory_format=torch.channels_last)
    bias = bias if bias is None else bias.contiguous()  # oneDNN's wrapper reads it as if it were
    geometry = list(symmetric), list(stride), [1, 1], groups
    pointwise = _torch.onednn_conv()
    # oneDNN's sum fails ("could not create a memory") on strides that it would not have chosen.
    if residual is not None and act == "none" and not aten.ambiguous(x, residual):
        other = residual.contiguous(memory_format=torch.channels_last)
        y = pointwise.binary(
            *(x, other, weight, bias if bias is None else bias.to(x.dtype)),
            *(*geometry, "add", 1.0, None, [], None),
        )
        return y
    fused = _ONEDNN_ACTS.get(act)
    y = pointwise.default(x, weight, bias, *geometry, *(fused or _ONEDNN_ACTS["none"]))
    if fused is None:
        y = _IN_PLACE[act](y)
    return aten.channels_last(y if residual is None else y.add_(residual))
