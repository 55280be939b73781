"""Small networks for digits: every kind of block of V2 and V1, and a ResNet."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from python_ref.model import EfficientNet
from python_ref.variants import SE_RATIO, Stage, Variant

from .plans import RESNET, V1, V2

CLASSES = 10
_DROP_PATH = 0.1
_STEM, _HEAD = 16, 256


def _fused(expand: int, stride: int, channels: int, layers: int) -> Stage:
    return Stage("fused", 3, stride, expand, channels, layers, se_ratio=0.0)


def _mbconv(expand: int, stride: int, channels: int, layers: int, kernel: int = 3) -> Stage:
    return Stage("mbconv", kernel, stride, expand, channels, layers, se_ratio=SE_RATIO)


#: An eighth of the image is left at the end, not a 32nd: the images are small.
_V2 = (_fused(1, 1, 16, 1), _fused(4, 2, 24, 2), _mbconv(4, 2, 48, 2), _mbconv(4, 1, 64, 2))
#: V1 knows no fused blocks, expands by 6, and has 5x5 kernels.
_V1 = (_mbconv(1, 1, 16, 1), _mbconv(6, 2, 24, 2), _mbconv(6, 2, 40, 2, 5), _mbconv(6, 1, 64, 1, 5))


def _efficientnet(name: str, stages: tuple[Stage, ...]) -> nn.Module:
    variant = Variant(name, _STEM, stages, _HEAD, 0.0, 64, 64)
    return EfficientNet(variant, num_classes=CLASSES, drop_path=_DROP_PATH)


def _resnet() -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    # A sixteenth of the image is left.
    return ResNet(
        BasicBlock,
        (1, 1, 1, 1),
        num_classes=CLASSES,
        output_stride=16,
        channels=(32, 48, 64, 96),
        stem_width=16,
        stem_type="deep",
        drop_path_rate=_DROP_PATH,
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    V2: lambda: _efficientnet(V2, _V2),
    V1: lambda: _efficientnet(V1, _V1),
    RESNET: _resnet,
}
