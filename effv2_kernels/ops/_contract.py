"""Argument checks and shapes that the ops share: one clear error at the boundary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ..activations import ACTS
from ..engines import aten

Norm = Sequence[Tensor]
NORM = ("mean", "variance", "gamma", "beta")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def fail(op: str, message: str) -> NoReturn:
    raise RuntimeError(f"effv2::{op}: {message}")


def check_map(op: str, name: str, x: Tensor) -> None:
    if x.dim() != 4:
        fail(op, f"{name} must be (N, C, H, W), got {x.dim()} dimensions")
    check_floating(op, name, x)


def check_floating(op: str, name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        fail(op, f"{name} must be float32, float16, bfloat16 or float64, got {x.dtype}")


def check_conv(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    eps: float,
    in_channels: int,
    prefix: str = "",
    kernel: int | None = None,
    cast: bool = False,
) -> None:
    """weight: (O, in_channels, kh, kw), of x's dtype unless the op will ``cast`` x to weight's;
    bias, norm: as in ``check_norm``; all on x's device."""
    names = f"{prefix}weight", f"{prefix}bias"
    if weight.dim() != 4:
        fail(op, f"{names[0]} must be (O, I, kh, kw), got {weight.dim()} dimensions")
    if weight.shape[1] != in_channels:
        fail(op, f"{names[0]} takes {weight.shape[1]} channels, its input has {in_channels}")
    if kernel is not None and tuple(weight.shape[2:]) != (kernel, kernel):
        found = f"{weight.shape[2]}x{weight.shape[3]}"
        fail(op, f"{names[0]} must be {kernel}x{kernel}, got {found}")
    if cast:
        check_floating(op, names[0], weight)
    else:
        check_dtype(op, names[0], weight, x.dtype)
    check_device(op, x, **{names[0]: weight})
    if bias is not None:
        check_parameter(op, names[1], bias, weight)
    if norm:
        check_norm(op, f"{prefix}norm", norm, weight)
        if eps <= 0.0:
            fail(op, f"{prefix}eps must be positive, got {eps}")


def check_norm(op: str, name: str, norm: Norm, weight: Tensor) -> None:
    """(mean, variance) or (mean, variance, gamma, beta), each a vector of ``weight``'s outputs, all
    of one dtype."""
    if len(norm) not in (2, 4):
        fail(op, f"{name} must be empty, (mean, variance) or (mean, variance, gamma, beta)")
    for part, vector in zip(NORM, norm, strict=False):
        check_parameter(op, f"{name}'s {part}", vector, weight)
        if vector.dtype != norm[0].dtype:
            fail(op, f"{name}'s {part} is {vector.dtype}, its mean is {norm[0].dtype}")


def check_parameter(op: str, name: str, vector: Tensor, weight: Tensor) -> None:
    """(O,), float32 or weight's dtype, on weight's device."""
    check_vector(op, name, vector, weight.shape[0])
    if vector.dtype not in (weight.dtype, torch.float32):
        fail(op, f"{name} must be float32 or {weight.dtype}, got {vector.dtype}")
    if vector.device != weight.device:
        fail(op, f"{name} is on {vector.device}, its weight is on {weight.device}")


def check_vector(op: str, name: str, vector: Tensor, length: int) -> None:
    if vector.dim() != 1 or vector.shape[0] != length:
        fail(op, f"{name} must be ({length},), got {tuple(vector.shape)}")


def check_dtype(op: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        fail(op, f"{name} is {tensor.dtype} and x is {dtype}: they must agree")


def check_device(op: str, x: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            fail(op, f"{name} is on {tensor.device}, x is on {x.device}: they must agree")


def check_act(op: str, act: str, known: Sequence[str] = ACTS, name: str = "act") -> None:
    if act not in known:
        fail(op, f"{name} must be one of {', '.join(known)}, got {act!r}")


def check_window(
    op: str, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> None:
    """stride: (sh, sw) >= 1; padding: (top, bottom, left, right) >= 0, or () for TF SAME."""
    if len(stride) != 2 or min(stride) < 1:
        fail(op, f"stride must be two positive integers, got {tuple(stride)}")
    if len(padding) not in (0, 4) or (padding and min(padding) < 0):
        fail(op, f"padding must be (top, bottom, left, right) or () for SAME, got {tuple(padding)}")
    if not padding:
        return
    height = x.shape[2] + padding[0] + padding[1]
    width = x.shape[3] + padding[2] + padding[3]
    if height < weight.shape[2] or width < weight.shape[3]:
        sizes = f"{x.shape[2]}x{x.shape[3]} padded by {tuple(padding)}"
        fail(op, f"a {weight.shape[2]}x{weight.shape[3]} kernel does not fit into {sizes}")


def check_residual(op: str, residual: Tensor | None, shape: Sequence[int], x: Tensor) -> None:
    if residual is None:
        return
    if tuple(residual.shape) != tuple(shape):
        fail(op, f"residual must be {tuple(shape)}, got {tuple(residual.shape)}")
    check_dtype(op, "residual", residual, x.dtype)
    check_device(op, x, residual=residual)


def out_size(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    """Height and width of the convolution's output."""
    return aten.out_size(x, weight.shape[2:], stride, padding)


def empty_map(
    x: Tensor, channels: int, height: int, width: int, dtype: torch.dtype | None = None
) -> Tensor:
    """An uninitialised channels_last (N, channels, height, width) on x's device."""
    return torch.empty(
        (x.shape[0], channels, height, width),
        dtype=dtype or x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
