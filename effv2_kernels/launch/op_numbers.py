"""The numbers that an op's work depends on, by name: for conditions that people read, and that are
cheap to look at in every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def _window(weight: Any, stride: Sequence[int]) -> tuple[int, int]:
    return weight.shape[2], stride[0]


# A convolution is four arguments: weight, bias, norm, eps.


def _stem(
    x: Any, weight: Any, _b: Any, _n: Any, _e: Any, stride: Sequence[int], *_: Any
) -> tuple[int, ...]:
    return (*x.shape, weight.shape[0], *_window(weight, stride))


def _conv(
    x: Any, weight: Any, _b: Any, _n: Any, _e: Any, residual: Any, stride: Sequence[int], *_: Any
) -> tuple[int, ...]:
    return (*x.shape, weight.shape[0], *_window(weight, stride), int(residual is not None))


def _fused_mbconv(x: Any, *rest: Any) -> tuple[int, ...]:
    first, last, residual, stride = rest[0], rest[4], rest[8], rest[9]
    sizes = first.shape[0], last.shape[0]
    return (*x.shape, *sizes, *_window(first, stride), int(residual))


def _depthwise(
    x: Any, weight: Any, _b: Any, _n: Any, _e: Any, stride: Sequence[int], *_: Any
) -> tuple[int, ...]:
    return (*x.shape, *_window(weight, stride))


def _expand_depthwise(x: Any, *rest: Any) -> tuple[int, ...]:
    first, depthwise, stride = rest[0], rest[4], rest[8]
    return (*x.shape, first.shape[0], *_window(depthwise, stride))


def _gate(pooled: Any, reduce_weight: Any, *_: Any) -> tuple[int, ...]:
    return (*pooled.shape, reduce_weight.shape[0])


def _gated_project(
    x: Any, gate: Any, weight: Any, _b: Any, _n: Any, _e: Any, residual: Any, *_: Any
) -> tuple[int, ...]:
    return (*x.shape, weight.shape[0], int(residual is not None))


def _head(x: Any, weight: Any, *_: Any) -> tuple[int, ...]:
    return (*x.shape, weight.shape[0])


_MAP = ("batch", "channels", "height", "width")
_WINDOW = ("kernel", "stride")
Numbers = Callable[..., tuple[int, ...]]
#: By the op's name: what its numbers are called, and the function of its arguments that gives them.
OPS: dict[str, tuple[tuple[str, ...], Numbers]] = {
    "stem": ((*_MAP, "out_channels", *_WINDOW), _stem),
    "conv_bias_act": ((*_MAP, "out_channels", *_WINDOW, "residual"), _conv),
    "fused_mbconv": ((*_MAP, "hidden", "out_channels", *_WINDOW, "residual"), _fused_mbconv),
    "depthwise_bias_act": ((*_MAP, *_WINDOW), _depthwise),
    "expand_depthwise": ((*_MAP, "out_channels", *_WINDOW), _expand_depthwise),
    "squeeze_excite_gate": (("batch", "channels", "hidden"), _gate),
    "gated_project": ((*_MAP, "out_channels", "residual"), _gated_project),
    "conv_act_pool": ((*_MAP, "out_channels"), _head),
}


def numbers_of(op: str, arguments: Sequence[Any]) -> dict[str, int]:
    """The numbers by their names, for an op's arguments (tensors may be of the device "meta")."""
    names, function = OPS[op]
    return dict(zip(names, function(*arguments), strict=True))
