"""Reading convolutions, norms and squeeze-excites: what every library builds from ``torch.nn``."""

from __future__ import annotations

from torch import nn

from ..activations import ACTS, GATES, name_of
from ..blocks import ConvNorm, SqueezeExcite


class Unsupported(Exception):
    """Raised while a block is read; its text is the refusal's reason."""


def conv_norm(
    conv: nn.Module,
    norm: nn.Module,
    act: nn.Module | str,
    *,
    norm_types: tuple[type, ...] = (nn.BatchNorm2d,),
    same_types: tuple[type, ...] = (),
    kind: str = "dense",
) -> ConvNorm:
    """Describe conv + norm + act, or raise Unsupported.

    norm_types: the exact classes that compute plain batch norm (a subclass may do anything).
    same_types: the library's convolutions that pad as TF SAME at run time.
    kind: "dense", "pointwise" (1x1, stride 1, no padding) or "depthwise".
    """
    if type(conv) is not nn.Conv2d and type(conv) not in same_types:
        raise Unsupported(f"its convolution is a {type(conv).__name__}, not an nn.Conv2d")
    if type(norm) not in norm_types:
        raise Unsupported(f"its norm is a {type(norm).__name__}, not batch norm with statistics")
    if not norm.track_running_stats or norm.running_mean is None:
        raise Unsupported("its batch norm keeps no running statistics (track_running_stats=False)")
    if conv.dilation != (1, 1):
        raise Unsupported(f"its convolution is dilated {conv.dilation} (output_stride below 32)")
    if conv.padding_mode != "zeros":
        raise Unsupported(f"its convolution pads with {conv.padding_mode!r}, not with zeros")
    if kind == "depthwise":
        if conv.groups != conv.in_channels or conv.in_channels != conv.out_channels:
            raise Unsupported(f"its convolution has {conv.groups} groups, it is not depthwise")
    elif conv.groups != 1:
        raise Unsupported(f"its convolution is grouped ({conv.groups} groups)")
    plain = conv.kernel_size == conv.stride == (1, 1) and conv.padding in (0, (0, 0), "valid")
    if kind == "pointwise" and not plain:
        raise Unsupported("a convolution that should be 1x1, unstrided and unpadded is not")
    if conv.kernel_size[0] != conv.kernel_size[1] or conv.kernel_size[0] % 2 == 0:
        raise Unsupported(f"its kernel is {conv.kernel_size[0]}x{conv.kernel_size[1]}")
    return ConvNorm(conv, norm, activation(act), padding_of(conv, same_types))


def drop_path(module: nn.Module | None, kind: type[nn.Module]) -> nn.Module | None:
    """The library's drop path, which in evaluation does nothing, or None where there is none;
    raises Unsupported for anything else."""
    if type(module) is kind:
        return module
    if type(module) not in (nn.Identity, type(None)):
        raise Unsupported(f"its drop path is a {type(module).__name__}")
    return None


def activation(act: nn.Module | str) -> str:
    name = act if isinstance(act, str) else name_of(act)
    if name not in ACTS:
        raise Unsupported(f"its activation is {_described(act)}, which the kernels do not have")
    return name


def padding_of(conv: nn.Conv2d, same_types: tuple[type, ...]) -> tuple[int, ...]:
    if type(conv) in same_types:
        return ()
    padding = conv.padding
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        if conv.stride != (1, 1):
            raise Unsupported("its convolution has padding='same' and a stride")
        padding = (conv.kernel_size[0] // 2, conv.kernel_size[1] // 2)
    return padding[0], padding[0], padding[1], padding[1]


def squeeze_excite(
    reduce: nn.Module, expand: nn.Module, act: nn.Module, gate: nn.Module
) -> SqueezeExcite:
    for conv in (reduce, expand):
        if type(conv) is not nn.Conv2d or conv.kernel_size != (1, 1):
            raise Unsupported("its squeeze-excite is not made of two plain 1x1 convolutions")
        if conv.bias is None or conv.groups != 1:
            raise Unsupported("its squeeze-excite has grouped convolutions or none of the biases")
        if conv.stride != (1, 1) or tuple(conv.padding) != (0, 0):
            raise Unsupported("its squeeze-excite has strided or padded convolutions")
    gate_name = name_of(gate)
    if gate_name not in GATES:
        raise Unsupported(f"its squeeze-excite gate is {_described(gate)}")
    return SqueezeExcite(reduce, expand, activation(act), gate_name)


def _described(module: nn.Module | str) -> str:
    return module if isinstance(module, str) else type(module).__name__
