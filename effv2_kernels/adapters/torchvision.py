"""torchvision: ``torchvision.models.efficientnet`` (V2 s, m, l and V1 b0 to b7)."""

from __future__ import annotations

from functools import cache

from torch import Tensor, nn

from ..blocks import Block, ConvBNAct, ConvNorm, FusedMBConv, MBConv, Refusal
from ._common import Unsupported, conv_norm, drop_path, squeeze_excite
from .ends import Ends


@cache
def _library():
    from torchvision.models import efficientnet
    from torchvision.ops import misc

    return efficientnet, misc


def describe(module: nn.Module) -> Block | Refusal | None:
    library, _ = _library()
    if not isinstance(module, (library.MBConv, library.FusedMBConv)):
        return None
    if type(module) not in (library.MBConv, library.FusedMBConv):
        return Refusal(f"it is a {type(module).__name__}, a subclass that may compute otherwise")
    try:
        if type(module) is library.MBConv:
            return _mbconv(module)
        return _fused_mbconv(module)
    except Unsupported as refusal:
        return Refusal(str(refusal))


def describe_ends(model: nn.Module) -> Ends | None:
    library, _ = _library()
    if type(model) is not library.EfficientNet:
        return None
    stem, head = model.features[0], model.features[-1]
    head_name = f"features.{len(model.features) - 1}"
    return TorchvisionEnds(
        model, "features.0", _described(stem, is_stem=True), head_name, _described(head)
    )


class TorchvisionEnds(Ends):
    """``features`` (stem, stages, head), ``avgpool``, ``classifier``."""

    methods = ("forward",)
    bypassed_methods = ("_forward_impl",)
    opened = ("features",)

    @property
    def bypassed(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.head_name, "avgpool"

    def original_stem(self, x: Tensor) -> Tensor:
        return self.model.features[0](x)

    def body(self, x: Tensor) -> Tensor:
        for stage in self.model.features[1:-1]:
            x = stage(x)
        return x

    def original_head(self, x: Tensor) -> Tensor:
        return self.model.features[-1](x)

    def after_head(self, x: Tensor) -> Tensor:
        return self.after_pool(self.model.avgpool(x).flatten(1))

    def after_pool(self, pooled: Tensor) -> Tensor:
        return self.model.classifier(pooled)

    def pools_plainly(self) -> bool:
        pool = self.model.avgpool
        return type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1))


def _described(module: nn.Module, is_stem: bool = False) -> Block | Refusal:
    try:
        kind = "dense" if is_stem else "pointwise"
        return ConvBNAct(_conv_norm_act(module, kind=kind), is_stem=is_stem)
    except Unsupported as refusal:
        return Refusal(str(refusal))


def _conv_norm_act(module: nn.Module, kind: str = "dense") -> ConvNorm:
    _, misc = _library()
    if type(module) is not misc.Conv2dNormActivation or len(module) not in (2, 3):
        raise Unsupported(f"it holds a {type(module).__name__} where conv, norm and act belong")
    act = module[2] if len(module) == 3 else "none"
    return conv_norm(module[0], module[1], act, kind=kind)


def _mbconv(module: nn.Module) -> MBConv:
    library, misc = _library()
    parts = list(module.block)
    if len(parts) not in (3, 4) or type(parts[-2]) is not misc.SqueezeExcitation:
        raise Unsupported("its squeeze-excite is not torchvision's SqueezeExcitation")
    se = parts[-2]
    if type(se.avgpool) is not nn.AdaptiveAvgPool2d or se.avgpool.output_size not in (1, (1, 1)):
        raise Unsupported("its squeeze is not a global average")
    return MBConv(
        expand=_conv_norm_act(parts[0], kind="pointwise") if len(parts) == 4 else None,
        depthwise=_conv_norm_act(parts[-3], kind="depthwise"),
        se=squeeze_excite(se.fc1, se.fc2, se.activation, se.scale_activation),
        project=_conv_norm_act(parts[-1], kind="pointwise"),
        residual=module.use_res_connect,
        drop_path=_drop_path(module),
        adds_in_place=True,
    )


def _fused_mbconv(module: nn.Module) -> FusedMBConv | ConvBNAct:
    parts = list(module.block)
    skipped = module.use_res_connect, _drop_path(module)
    if len(parts) == 1:
        return ConvBNAct(_conv_norm_act(parts[0]), skipped[0], False, skipped[1], True)
    if len(parts) != 2:
        raise Unsupported(f"it has {len(parts)} parts where expand and project belong")
    expand, project = _conv_norm_act(parts[0]), _conv_norm_act(parts[1], kind="pointwise")
    return FusedMBConv(expand, None, project, *skipped, adds_in_place=True)


def _drop_path(module: nn.Module) -> nn.Module | None:
    return drop_path(module.stochastic_depth, _library()[0].StochasticDepth)
