"""The paper in plain PyTorch: EfficientNetV2 and its V1 baselines.

``create(name)`` builds a network, ``weights.load(model, source)`` fills it from a checkpoint of
timm, torchvision or its own, ``count_macs(model, resolution)`` tells what it costs.
"""

from . import weights
from .blocks import Conv2dSame, ConvBNAct, ConvStyle, DropPath, FusedMBConv, MBConv, SqueezeExcite
from .factory import (
    create,
    efficientnet_b0,
    efficientnet_b1,
    efficientnet_b2,
    efficientnet_b3,
    efficientnet_b4,
    efficientnet_b5,
    efficientnet_b6,
    efficientnet_b7,
    efficientnetv2_b0,
    efficientnetv2_b1,
    efficientnetv2_b2,
    efficientnetv2_b3,
    efficientnetv2_l,
    efficientnetv2_m,
    efficientnetv2_s,
    efficientnetv2_xl,
)
from .flops import count_macs
from .model import EfficientNet, FeatureInfo
from .variants import VARIANTS, Placement, Variant
from .weights import StateDictError

__all__ = [
    "Conv2dSame",
    "ConvBNAct",
    "ConvStyle",
    "DropPath",
    "EfficientNet",
    "FeatureInfo",
    "FusedMBConv",
    "MBConv",
    "Placement",
    "SqueezeExcite",
    "StateDictError",
    "VARIANTS",
    "Variant",
    "count_macs",
    "create",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnetv2_b0",
    "efficientnetv2_b1",
    "efficientnetv2_b2",
    "efficientnetv2_b3",
    "efficientnetv2_l",
    "efficientnetv2_m",
    "efficientnetv2_s",
    "efficientnetv2_xl",
    "weights",
]
