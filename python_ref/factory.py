"""``create`` and one function a variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import variants
from .blocks import ConvStyle, Padding
from .model import EfficientNet
from .variants import Placement


def create(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    padding: Padding = "symmetric",
    bn_eps: float = 1e-3,
    bn_momentum: float = 0.1,
    drop_path: float = 0.2,
    dropout: float | None = None,
    placement: Placement | Sequence[str] | None = None,
    out_indices: Sequence[int] | None = None,
) -> EfficientNet:
    """A network by name, in float32, with the official random initialisation.

    Args:
        name: ``"efficientnetv2_s"`` (short ``"s"``; also b0 b1 b2 b3 m l xl) or
            ``"efficientnet_b4"`` (short ``"v1_b4"``; b0 to b7).
        num_classes: 0 leaves the classifier out: the output is the pooled features.
        in_chans: channels of the input image.
        padding: ``"symmetric"`` as PyTorch pads, or ``"same"`` as TensorFlow does. Weights that
            come from TensorFlow (timm's ``tf_*``) want ``"same"``.
        bn_eps, bn_momentum: of every batch norm, in PyTorch's convention. timm's networks without
            ``tf_``, and torchvision's V1 B0 to B4, have an epsilon of 1e-5.
        drop_path: stochastic depth, rising linearly from 0 over the blocks.
        dropout: before the classifier; None takes the variant's own rate.
        placement: which stages are Fused-MBConv, as a ``Placement`` or as one of ``"fused"`` and
            ``"mbconv"`` for each stage; None takes the variant's own.
        out_indices: make ``forward`` return a list of feature maps, numbered as in the model's
            ``feature_info`` (0 is stride 2, -1 the last). The parts that these maps do not need are
            kept, so that checkpoints fit, but get no gradient.

    Raises ValueError for an unknown name or values that make no network.
    """
    return EfficientNet(
        variants.place(variants.find(name), placement),
        num_classes=num_classes,
        in_chans=in_chans,
        style=ConvStyle(padding, bn_eps, bn_momentum),
        drop_path=drop_path,
        dropout=dropout,
        out_indices=out_indices,
    )


def efficientnetv2_b0(**kwargs: Any) -> EfficientNet:
    """EfficientNetV2-B0; keywords as for ``create``."""
    return create("efficientnetv2_b0", **kwargs)


def efficientnetv2_b1(**kwargs: Any) -> EfficientNet:
    """EfficientNetV2-B1; keywords as for ``create``."""
    return create("efficientnetv2_b1", **kwargs)


def efficientnetv2_b2(**kwargs: Any) -> EfficientNet:
    """EfficientNetV2-B2; keywords as for ``create``."""
    return create("efficientnetv2_b2", **kwargs)


def efficientnetv2_b3(**kwargs: Any) -> EfficientNet:
    """EfficientNetV2-B3; keywords as for ``create``."""
    return create("efficientnetv2_b3", **kwargs)


def efficientnetv2_s(**kwargs: Any) -> EfficientNet:
    """EfficientNetV2-S; keywords as for ``create``."""
    return create("efficientnetv2_s", **kwargs)


def efficientnetv2_m(**kwargs: Any) -> EfficientNet:
    """EfficientNetV2-M; keywords as for ``create``."""
    return create("efficientnetv2_m", **kwargs)


def efficientnetv2_l(**kwargs: Any) -> EfficientNet:
    """EfficientNetV2-L; keywords as for ``create``."""
    return create("efficientnetv2_l", **kwargs)


def efficientnetv2_xl(**kwargs: Any) -> EfficientNet:
    """EfficientNetV2-XL; keywords as for ``create``."""
    return create("efficientnetv2_xl", **kwargs)


def efficientnet_b0(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B0 (V1); keywords as for ``create``."""
    return create("efficientnet_b0", **kwargs)


def efficientnet_b1(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B1 (V1); keywords as for ``create``."""
    return create("efficientnet_b1", **kwargs)


def efficientnet_b2(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B2 (V1); keywords as for ``create``."""
    return create("efficientnet_b2", **kwargs)


def efficientnet_b3(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B3 (V1); keywords as for ``create``."""
    return create("efficientnet_b3", **kwargs)


def efficientnet_b4(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B4 (V1); keywords as for ``create``."""
    return create("efficientnet_b4", **kwargs)


def efficientnet_b5(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B5 (V1); keywords as for ``create``."""
    return create("efficientnet_b5", **kwargs)


def efficientnet_b6(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B6 (V1); keywords as for ``create``."""
    return create("efficientnet_b6", **kwargs)


def efficientnet_b7(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B7 (V1); keywords as for ``create``."""
    return create("efficientnet_b7", **kwargs)
