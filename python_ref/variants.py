"""The networks as data: every V2 and V1 variant, and the rounding rules that scale them.

Sources: EfficientNetV2 (arXiv 2104.00298) table 4 and the official configurations for V2;
EfficientNet (arXiv 1905.11946) table 1 and its compound scaling for V1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["fused", "mbconv"]
KINDS: tuple[Kind, ...] = ("fused", "mbconv")
SE_RATIO = 0.25  # of the block's input channels, in both papers


@dataclass(frozen=True)
class Stage:
    """A run of equal blocks; only the first one has the stride and changes the channel count."""

    kind: Kind
    kernel: int
    stride: int
    expand: int
    channels: int
    layers: int
    se_ratio: float


@dataclass(frozen=True)
class Variant:
    """One network. Sizes are square image sides in pixels."""

    name: str
    stem: int
    stages: tuple[Stage, ...]
    head: int
    dropout: float
    train_size: int
    eval_size: int


@dataclass(frozen=True)
class Placement:
    """Which stages (numbered from 1) are Fused-MBConv; every other stage is MBConv.

    A stage that already is of the asked kind stays as the variant has it. One that becomes fused
    takes ``kernel`` (None: its own) and squeeze-and-excite only if ``squeeze_excite``; one that
    becomes MBConv gets the squeeze-and-excite that every MBConv of the paper has.

    Table 3 of the paper (B4 backbone) is ``fused=()``, ``(1, 2, 3)``, ``(1, ..., 5)`` and
    ``(1, ..., 7)``. The paper does not say which kernel it used, and no single choice gives all
    of its rows: ``kernel=3`` gives the second one, ``kernel=None`` the last two.
    """

    fused: tuple[int, ...] = ()
    kernel: int | None = None
    squeeze_excite: bool = False

    @classmethod
    def parse(cls, value: Placement | Sequence[str]) -> Placement:
        """A placement as it is, or one kind (``"fused"``, ``"mbconv"``) for each stage."""
        if isinstance(value, Placement):
            return value
        if isinstance(value, str) or not all(kind in KINDS for kind in value):
            raise ValueError(
                f"placement must be a Placement or one of {KINDS} for each stage, got {value!r}"
            )
        return cls(fused=tuple(i for i, kind in enumerate(value, 1) if kind == "fused"))


def round_channels_v2(channels: int, width: float) -> int:
    """Nearest multiple of 8, at least 8. V2 has no rule against losing more than 10 %."""
    return max(8, int(channels * width + 4) // 8 * 8)


def round_channels_v1(channels: int, width: float) -> int:
    """As V2's rule, but one step up where rounding would lose more than 10 % of the channels."""
    rounded = round_channels_v2(channels, width)
    return rounded if rounded >= 0.9 * channels * width else rounded + 8


def round_layers(layers: int, depth: float) -> int:
    return math.ceil(depth * layers)


def squeeze_channels(block_in: int, ratio: float) -> int:
    """Hidden width of squeeze-and-excite, 0 for none. It follows the block's input, not the
    expanded tensor that it acts on."""
    return max(1, int(block_in * ratio)) if ratio else 0


def place(variant: Variant, placement: Placement | Sequence[str] | None) -> Variant:
    """The variant with its stages' kinds chosen by ``placement``; None changes nothing.

    Raises ValueError for an unknown kind, a wrong number of kinds or a stage that is not there.
    """
    if placement is None:
        return variant
    count = len(variant.stages)
    if not isinstance(placement, (Placement, str)) and len(placement) != count:
        raise ValueError(f"{variant.name} has {count} stages, placement names {len(placement)}")
    chosen = Placement.parse(placement)
    unknown = sorted(set(chosen.fused) - set(range(1, count + 1)))
    if unknown:
        raise ValueError(f"{variant.name} has stages 1 to {count}, placement fuses {unknown}")

    def convert(number: int, stage: Stage) -> Stage:
        kind: Kind = "fused" if number in chosen.fused else "mbconv"
        if kind == stage.kind:
            return stage
        if kind == "mbconv":
            return replace(stage, kind=kind, se_ratio=SE_RATIO)
        return replace(
            stage,
            kind=kind,
            kernel=chosen.kernel or stage.kernel,
            se_ratio=SE_RATIO if chosen.squeeze_excite else 0.0,
        )

    return replace(variant, stages=tuple(convert(i, s) for i, s in enumerate(variant.stages, 1)))


def _fused(expand: int, stride: int, channels: int, layers: int) -> Stage:
    return Stage("fused", 3, stride, expand, channels, layers, se_ratio=0.0)


def _mbconv(expand: int, stride: int, channels: int, layers: int, kernel: int = 3) -> Stage:
    return Stage("mbconv", kernel, stride, expand, channels, layers, se_ratio=SE_RATIO)


def _scaled(
    name: str,
    base: tuple[Stage, ...],
    round_channels: Callable[[int, float], int],
    *,
    width: float,
    depth: float,
    dropout: float,
    train_size: int,
    eval_size: int,
) -> Variant:
    """Compound scaling of a B0 base, whose stem is 32 and whose head is 1280 channels wide."""
    stages = tuple(
        replace(
            stage,
            channels=round_channels(stage.channels, width),
            layers=round_layers(stage.layers, depth),
        )
        for stage in base
    )
    stem, head = round_channels(32, width), round_channels(1280, width)
    return Variant(name, stem, stages, head, dropout, train_size, eval_size)


def _v2_base(name: str, width: float, depth: float, train: int, test: int, drop: float) -> Variant:
    return _scaled(
        f"efficientnetv2_{name}",
        _V2_BASE,
        round_channels_v2,
        width=width,
        depth=depth,
        dropout=drop,
        train_size=train,
        eval_size=test,
    )


def _v1(name: str, width: float, depth: float, test: int, drop: float) -> Variant:
    return _scaled(
        f"efficientnet_{name}",
        _V1_BASE,
        round_channels_v1,
        width=width,
        depth=depth,
        dropout=drop,
        train_size=int(0.8 * test) // 16 * 16,
        eval_size=test,
    )


_V2_BASE = (
    _fused(1, 1, 16, 1),
    _fused(4, 2, 32, 2),
    _fused(4, 2, 48, 2),
    _mbconv(4, 2, 96, 3),
    _mbconv(6, 1, 112, 5),
    _mbconv(6, 2, 192, 8),
)

_V1_BASE = (
    _mbconv(1, 1, 16, 1),
    _mbconv(6, 2, 24, 2),
    _mbconv(6, 2, 40, 2, kernel=5),
    _mbconv(6, 2, 80, 3),
    _mbconv(6, 1, 112, 3, kernel=5),
    _mbconv(6, 2, 192, 4, kernel=5),
    _mbconv(6, 1, 320, 1),
)

_S = (
    _fused(1, 1, 24, 2),
    _fused(4, 2, 48, 4),
    _fused(4, 2, 64, 4),
    _mbconv(4, 2, 128, 6),
    _mbconv(6, 1, 160, 9),
    _mbconv(6, 2, 256, 15),
)

_M = (
    _fused(1, 1, 24, 3),
    _fused(4, 2, 48, 5),
    _fused(4, 2, 80, 5),
    _mbconv(4, 2, 160, 7),
    _mbconv(6, 1, 176, 14),
    _mbconv(6, 2, 304, 18),
    _mbconv(6, 1, 512, 5),
)

_L = (
    _fused(1, 1, 32, 4),
    _fused(4, 2, 64, 7),
    _fused(4, 2, 96, 7),
    _mbconv(4, 2, 192, 10),
    _mbconv(6, 1, 224, 19),
    _mbconv(6, 2, 384, 25),
    _mbconv(6, 1, 640, 7),
)

_XL = (
    _fused(1, 1, 32, 4),
    _fused(4, 2, 64, 8),
    _fused(4, 2, 96, 8),
    _mbconv(4, 2, 192, 16),
    _mbconv(6, 1, 256, 24),
    _mbconv(6, 2, 512, 32),
    _mbconv(6, 1, 640, 8),
)

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        # name, width, depth, train size, evaluation size, dropout
        _v2_base("b0", 1.0, 1.0, 192, 224, 0.2),
        _v2_base("b1", 1.0, 1.1, 192, 240, 0.2),
        _v2_base("b2", 1.1, 1.2, 208, 260, 0.3),
        _v2_base("b3", 1.2, 1.4, 240, 300, 0.3),
        Variant("efficientnetv2_s", 24, _S, 1280, 0.2, 300, 384),
        Variant("efficientnetv2_m", 24, _M, 1280, 0.3, 384, 480),
        Variant("efficientnetv2_l", 32, _L, 1280, 0.4, 384, 480),
        Variant("efficientnetv2_xl", 32, _XL, 1280, 0.4, 384, 512),
        # name, width, depth, evaluation size, dropout
        _v1("b0", 1.0, 1.0, 224, 0.2),
        _v1("b1", 1.0, 1.1, 240, 0.2),
        _v1("b2", 1.1, 1.2, 260, 0.3),
        _v1("b3", 1.2, 1.4, 300, 0.3),
        _v1("b4", 1.4, 1.8, 380, 0.4),
        _v1("b5", 1.6, 2.2, 456, 0.4),
        _v1("b6", 1.8, 2.6, 528, 0.5),
        _v1("b7", 2.0, 3.1, 600, 0.5),
    )
}


def _aliases(variant: Variant) -> tuple[str, ...]:
    family, short = variant.name.split("_")
    if family == "efficientnetv2":
        return (short, f"v2_{short}", f"efficientnet_v2_{short}")
    # A bare "b0" means V2, so V1 has no bare names at all: "b4" had better be an error.
    return (f"v1_{short}", f"efficientnet_v1_{short}")


_BY_NAME = VARIANTS | {
    alias: variant for variant in VARIANTS.values() for alias in _aliases(variant)
}


def find(name: str) -> Variant:
    """The variant called ``name``: a key of ``VARIANTS``, or an alias such as ``"s"``, ``"v2_s"``,
    ``"efficientnet_v2_s"`` (torchvision's spelling) or ``"v1_b4"``.

    Raises ValueError, listing what there is, for any other name.
    """
    if name not in _BY_NAME:
        known = ", ".join(f"{v.name} ({_aliases(v)[0]})" for v in VARIANTS.values())
        raise ValueError(f"unknown variant {name!r}; known, with the short name: {known}")
    return _BY_NAME[name]
