"""What a block is, whoever wrote it: frozen descriptions that hold the live modules.

An adapter turns a module of timm, torchvision or ``python_ref`` into one of these; inference and
training read nothing else. They hold modules, not tensors, so a weight that is replaced, moved or
loaded later is seen. ``drop_path``: what scales each image of a residual branch in training.
``adds_in_place``: whether the branch, and its dtype, takes the sum with the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from torch import Tensor, nn


@dataclass(frozen=True)
class ConvNorm:
    """Convolution, batch norm and activation. ``padding`` is (top, bottom, left, right), or () for
    TF SAME, which depends on the input's size."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    act: str
    padding: tuple[int, ...]

    @property
    def stride(self) -> tuple[int, int]:
        return self.conv.stride  # type: ignore[return-value]


@dataclass(frozen=True)
class SqueezeExcite:
    """Mean over H x W, 1x1 ``reduce``, ``act``, 1x1 ``expand``, ``gate``, multiply."""

    reduce: nn.Conv2d
    expand: nn.Conv2d
    act: str
    gate: str


@dataclass(frozen=True)
class ConvBNAct:
    """One dense convolution with BN and activation, and the input added after the activation if
    ``residual``: the Fused-MBConv of expansion 1, the stem and the head."""

    conv: ConvNorm
    residual: bool = False
    is_stem: bool = False
    drop_path: nn.Module | None = None
    adds_in_place: bool = False


@dataclass(frozen=True)
class FusedMBConv:
    """k x k expand, optional squeeze-excite, 1x1 project (paper, figure 2)."""

    expand: ConvNorm
    se: SqueezeExcite | None
    project: ConvNorm
    residual: bool
    drop_path: nn.Module | None = None
    adds_in_place: bool = False


@dataclass(frozen=True)
class MBConv:
    """1x1 expand (None: expansion 1), depthwise, optional squeeze-excite, 1x1 project."""

    expand: ConvNorm | None
    depthwise: ConvNorm
    se: SqueezeExcite | None
    project: ConvNorm
    residual: bool
    drop_path: nn.Module | None = None
    adds_in_place: bool = False


Block = ConvBNAct | FusedMBConv | MBConv


@dataclass(frozen=True)
class Refusal:
    """Why a candidate block is left as it is, in a sentence."""

    reason: str


def convs_of(block: Block) -> Iterator[tuple[str, ConvNorm]]:
    """(field name, ConvNorm) of the block, in order of execution."""
    for field in fields(block):
        value = getattr(block, field.name)
        if isinstance(value, ConvNorm):
            yield field.name, value


def plus_input(block: Block, y: Tensor, x: Tensor) -> Tensor:
    """The residual's sum with a wider x: in PyTorch it is wider too, where it is not in place."""
    return (y + x).to(y.dtype) if block.adds_in_place else y + x


def se_of(block: Block) -> SqueezeExcite | None:
    return getattr(block, "se", None)


def leaves_of(block: Block) -> Iterator[nn.Module]:
    """Every module whose parameters or buffers the block reads."""
    for _, part in convs_of(block):
        yield part.conv
        yield part.norm
    yield from gates_of(block)


def gates_of(block: Block) -> Iterator[nn.Conv2d]:
    """The convolutions of the squeeze-excite."""
    se = se_of(block)
    if se is not None:
        yield se.reduce
        yield se.expand
