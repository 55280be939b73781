"""The blocks of a model with their sizes: what each one is, and the shapes that go in and out.

One forward of a hollow copy on the meta device, so any network of timm, torchvision or
``python_ref`` at any size costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effv2_kernels import adapters
from effv2_kernels.adapters.ends import Ends
from effv2_kernels.blocks import Block, ConvBNAct, ConvNorm, FusedMBConv, Refusal
from effv2_kernels.engines.aten import four_sides
from effv2_kernels.patching.macs import hollow_copy


@dataclass(frozen=True)
class Conv:
    """A convolution with its BN and activation. Shapes are (C, H, W); ``padding`` is (top, bottom,
    left, right)."""

    inputs: tuple[int, int, int]
    outputs: tuple[int, int, int]
    kernel: int
    stride: int
    padding: tuple[int, int, int, int]
    act: str
    depthwise: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        channels = 1 if self.depthwise else self.inputs[0]
        return elements(self.outputs) * channels * self.kernel**2


@dataclass(frozen=True)
class SizedBlock:
    """One block of a model. ``role`` is "stem", "block" or "head"; ``convs`` in order of execution;
    ``se_hidden``: channels between the two layers of the squeeze-excite, 0 without one."""

    name: str
    kind: str
    role: str
    convs: tuple[Conv, ...]
    se_hidden: int
    residual: bool

    @property
    def inputs(self) -> tuple[int, int, int]:
        return self.convs[0].inputs

    @property
    def outputs(self) -> tuple[int, int, int]:
        return self.convs[-1].outputs

    @property
    def shape(self) -> tuple:
        """What two blocks that do the same work share."""
        return self.kind, self.role, self.convs, self.se_hidden, self.residual


def elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def blocks_of(model: nn.Module, resolution: int) -> list[SizedBlock]:
    """Every block of the model that an adapter knows, stem and head included, in order of
    execution, for one square image of ``resolution`` pixels."""
    hollow = hollow_copy(model).eval()
    known = dict(_described(hollow))
    seen: list[tuple[str, tuple[int, ...]]] = []
    for name, module in hollow.named_modules():
        if name in known:
            module.register_forward_pre_hook(_note(name, seen))
    first = next(m for m in hollow.modules() if isinstance(m, nn.Conv2d))
    dtype = next(hollow.parameters()).dtype
    with torch.no_grad():
        hollow(
            torch.empty(1, first.in_channels, resolution, resolution, device="meta", dtype=dtype)
        )
    return [_sized(name, *known[name], shape) for name, shape in seen]


def _note(name: str, seen: list):
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((name, tuple(inputs[0].shape[1:])))

    return hook


def _described(model: nn.Module) -> Iterator[tuple[str, tuple[Block, str]]]:
    for name, module in model.named_modules():
        for adapter in adapters.loaded():
            block = adapter.describe(module)
            if block is not None and not isinstance(block, Refusal):
                yield name, (block, "block")
            ends = adapter.describe_ends(module)
            if ends is not None:
                yield from _ends(f"{name}." if name else "", ends)


def _ends(prefix: str, ends: Ends) -> Iterator[tuple[str, tuple[Block, str]]]:
    for name, block, role in (
        (ends.stem_name, ends.stem, "stem"),
        (ends.head_name, ends.head, "head"),
    ):
        if name is not None and isinstance(block, ConvBNAct):
            yield prefix + name, (block, role)


def _sized(name: str, block: Block, role: str, shape: tuple[int, ...]) -> SizedBlock:
    se = getattr(block, "se", None)
    convs = []
    for part in _parts(block):
        convs.append(_conv(part, shape))
        shape = convs[-1].outputs
    return SizedBlock(
        name,
        type(block).__name__,
        role,
        tuple(convs),
        se.reduce.out_channels if se is not None else 0,
        block.residual,
    )


def _parts(block: Block) -> list[ConvNorm]:
    if isinstance(block, ConvBNAct):
        return [block.conv]
    if isinstance(block, FusedMBConv):
        return [block.expand, block.project]
    return [p for p in (block.expand, block.depthwise, block.project) if p is not None]


def _conv(part: ConvNorm, shape: tuple[int, ...]) -> Conv:
    channels, height, width = shape
    kernel, stride = part.conv.kernel_size[0], part.stride[0]
    empty = torch.empty(1, channels, height, width, device="meta")
    top, bottom, left, right = four_sides(empty, part.conv.kernel_size, part.stride, part.padding)
    size = (
        (height + top + bottom - kernel) // stride + 1,
        (width + left + right - kernel) // stride + 1,
    )
    return Conv(
        (channels, height, width),
        (part.conv.out_channels, *size),
        kernel,
        stride,
        (top, bottom, left, right),
        part.act,
        depthwise=part.conv.groups > 1,
    )
