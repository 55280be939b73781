"""timm: the blocks of ``timm.models._efficientnet_blocks`` and the model ``EfficientNet``."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from torch import Tensor, nn

from ..blocks import Block, ConvBNAct, ConvNorm, FusedMBConv, MBConv, Refusal, SqueezeExcite
from . import _common
from ._common import Unsupported
from .ends import Ends


@cache
def _library() -> SimpleNamespace:
    from timm import layers
    from timm.models import _efficientnet_blocks as blocks
    from timm.models import efficientnet

    return SimpleNamespace(
        blocks=blocks,
        layers=layers,
        models=efficientnet,
        readers={
            blocks.ConvBnAct: _conv_bn_act,
            blocks.EdgeResidual: _edge_residual,
            blocks.InvertedResidual: _inverted_residual,
            blocks.DepthwiseSeparableConv: _depthwise_separable,
        },
        foreign=tuple(
            getattr(blocks, name)
            for name in ("CondConvResidual", "UniversalInvertedResidual", "MobileAttention")
            if hasattr(blocks, name)
        ),
    )


def describe(module: nn.Module) -> Block | Refusal | None:
    library = _library()
    reader = library.readers.get(type(module))
    if reader is None:
        if isinstance(module, (*library.readers, *library.foreign)):
            return Refusal(f"it is a {type(module).__name__}, which computes something else")
        return None
    try:
        _refuse_extras(module)
        return reader(module)
    except Unsupported as refusal:
        return Refusal(str(refusal))


def describe_ends(model: nn.Module) -> Ends | None:
    models = _library().models
    if isinstance(model, models.EfficientNetFeatures):
        reason = "a features_only network reads its stem's convolution and norm one by one"
        return Ends(model, "conv_stem", Refusal(reason), run_by_model=True)
    if type(model) is not models.EfficientNet:
        return None
    return TimmEnds(
        model,
        "conv_stem",
        _end(model.conv_stem, model.bn1, is_stem=True),
        "conv_head",
        _end(model.conv_head, model.bn2),
        run_by_model=True,
    )


class TimmEnds(Ends):
    """``conv_stem, bn1, blocks, conv_head, bn2, global_pool, classifier``, none of which holds a
    whole end: the model's own forward has to run them."""

    methods = ("forward", "forward_features")
    bypassed_methods = ("forward_head",)
    bypassed = ("conv_stem", "bn1", "conv_head", "bn2", "global_pool")

    def original_stem(self, x: Tensor) -> Tensor:
        return self.model.bn1(self.model.conv_stem(x))

    def body(self, x: Tensor) -> Tensor:
        if self.model.grad_checkpointing:
            return _library().models.checkpoint_seq(self.model.blocks, x, flatten=True)
        return self.model.blocks(x)

    def original_head(self, x: Tensor) -> Tensor:
        return self.model.bn2(self.model.conv_head(x))

    def after_head(self, x: Tensor) -> Tensor:
        return self.model.forward_head(x)

    def after_pool(self, pooled: Tensor) -> Tensor:
        return self.model.classifier(pooled)

    def pools_plainly(self) -> bool:
        pool = self.model.global_pool
        if type(pool) is not _library().layers.SelectAdaptivePool2d or pool.pool_type != "avg":
            return False
        plain = type(pool.pool) is nn.AdaptiveAvgPool2d and pool.pool.output_size in (1, (1, 1))
        return plain and type(pool.flatten) is nn.Flatten and pool.flatten.start_dim == 1


def _refuse_extras(module: nn.Module) -> None:
    if getattr(module, "conv_s2d", None) is not None:
        raise Unsupported("it starts with a space-to-depth convolution")
    if type(getattr(module, "aa", None)) not in (nn.Identity, type(None)):
        raise Unsupported("it has an anti-aliasing layer between its convolutions")


def _drop_path(module: nn.Module) -> nn.Module | None:
    return _common.drop_path(getattr(module, "drop_path", None), _library().layers.DropPath)


def _conv_norm(conv: nn.Module, norm: nn.Module, *, kind: str = "dense") -> ConvNorm:
    layers = _library().layers
    if type(norm) is layers.BatchNormAct2d:
        if type(norm.drop) is not nn.Identity:
            raise Unsupported("its batch norm carries a drop layer")
        act: nn.Module | str = norm.act
    else:
        act = "none"
    return _common.conv_norm(
        conv,
        norm,
        act,
        norm_types=(layers.BatchNormAct2d,),
        same_types=(layers.Conv2dSame,),
        kind=kind,
    )


def _end(conv: nn.Module, norm: nn.Module, is_stem: bool = False) -> Block | Refusal:
    try:
        kind = "dense" if is_stem else "pointwise"
        return ConvBNAct(_conv_norm(conv, norm, kind=kind), is_stem=is_stem)
    except Unsupported as refusal:
        return Refusal(str(refusal))


def _squeeze_excite(se: nn.Module) -> SqueezeExcite | None:
    if type(se) is nn.Identity:
        return None
    if type(se) is not _library().blocks.SqueezeExcite:
        raise Unsupported(f"its attention is a {type(se).__name__}, not plain squeeze-and-excite")
    return _common.squeeze_excite(se.conv_reduce, se.conv_expand, se.act1, se.gate)


def _conv_bn_act(module: nn.Module) -> ConvBNAct:
    conv, drop_path = _conv_norm(module.conv, module.bn1), _drop_path(module)
    return ConvBNAct(conv, residual=module.has_skip, drop_path=drop_path)


def _edge_residual(module: nn.Module) -> FusedMBConv:
    return FusedMBConv(
        expand=_conv_norm(module.conv_exp, module.bn1),
        se=_squeeze_excite(module.se),
        project=_conv_norm(module.conv_pwl, module.bn2, kind="pointwise"),
        residual=module.has_skip,
        drop_path=_drop_path(module),
    )


def _inverted_residual(module: nn.Module) -> MBConv:
    return MBConv(
        expand=_conv_norm(module.conv_pw, module.bn1, kind="pointwise"),
        depthwise=_conv_norm(module.conv_dw, module.bn2, kind="depthwise"),
        se=_squeeze_excite(module.se),
        project=_conv_norm(module.conv_pwl, module.bn3, kind="pointwise"),
        residual=module.has_skip,
        drop_path=_drop_path(module),
    )


def _depthwise_separable(module: nn.Module) -> MBConv:
    return MBConv(
        expand=None,
        depthwise=_conv_norm(module.conv_dw, module.bn1, kind="depthwise"),
        se=_squeeze_excite(module.se),
        project=_conv_norm(module.conv_pw, module.bn2, kind="pointwise"),
        residual=module.has_skip,
        drop_path=_drop_path(module),
    )
