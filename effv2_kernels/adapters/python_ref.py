"""``python_ref``: the paper's networks in plain PyTorch."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from torch import Tensor, nn

from ..blocks import Block, ConvBNAct, ConvNorm, FusedMBConv, MBConv, Refusal, SqueezeExcite
from . import _common
from ._common import Unsupported
from .ends import Ends


@cache
def _library() -> tuple[ModuleType, type[nn.Module]]:
    from python_ref import blocks
    from python_ref.model import EfficientNet

    return blocks, EfficientNet


def describe(module: nn.Module) -> Block | Refusal | None:
    blocks, _ = _library()
    if not isinstance(module, (blocks.MBConv, blocks.FusedMBConv)):
        return None
    try:
        if type(module) is blocks.MBConv:
            return _mbconv(module)
        if type(module) is blocks.FusedMBConv:
            return _fused_mbconv(module)
        raise Unsupported(f"it is a {type(module).__name__}, a subclass that may compute otherwise")
    except Unsupported as refusal:
        return Refusal(str(refusal))


def describe_ends(model: nn.Module) -> Ends | None:
    _, network = _library()
    if type(model) is not network:
        return None
    stem, head = _end(model.stem, is_stem=True), _end(model.head)
    return ReferenceEnds(model, "stem", stem, "head", head)


class ReferenceEnds(Ends):
    """``stem, stages, head, pool, dropout, classifier``."""

    methods = ("forward",)
    bypassed_methods = ("forward_features", "forward_head")
    bypassed = ("head", "pool")

    def original_stem(self, x: Tensor) -> Tensor:
        return self.model.stem(x)

    def body(self, x: Tensor) -> Tensor:
        return self.model.stages(x)

    def original_head(self, x: Tensor) -> Tensor:
        return self.model.head(x)

    def after_head(self, x: Tensor) -> Tensor:
        return self.model.forward_head(x)

    def after_pool(self, pooled: Tensor) -> Tensor:
        return self.model.classifier(self.model.dropout(pooled))

    def pools_plainly(self) -> bool:
        pool = self.model.pool
        return type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1))

    def applies(self) -> bool:
        return self.model.out_indices is None


def _conv_norm(part: nn.Module, *, kind: str = "dense") -> ConvNorm:
    blocks, _ = _library()
    if type(part) is not blocks.ConvBNAct:
        raise Unsupported(f"it holds a {type(part).__name__} where a ConvBNAct belongs")
    same = (blocks.Conv2dSame,)
    return _common.conv_norm(part.conv, part.bn, part.act, same_types=same, kind=kind)


def _end(part: nn.Module, is_stem: bool = False) -> Block | Refusal:
    try:
        return ConvBNAct(
            _conv_norm(part, kind="dense" if is_stem else "pointwise"), is_stem=is_stem
        )
    except Unsupported as refusal:
        return Refusal(str(refusal))


def _squeeze_excite(se: nn.Module) -> SqueezeExcite | None:
    blocks, _ = _library()
    if type(se) is nn.Identity:
        return None
    if type(se) is not blocks.SqueezeExcite:
        raise Unsupported(f"its attention is a {type(se).__name__}, not plain squeeze-and-excite")
    return _common.squeeze_excite(se.reduce, se.expand, se.act, se.gate)


def _mbconv(module: nn.Module) -> MBConv:
    return MBConv(
        expand=None if module.expand is None else _conv_norm(module.expand, kind="pointwise"),
        depthwise=_conv_norm(module.depthwise, kind="depthwise"),
        se=_squeeze_excite(module.se),
        project=_conv_norm(module.project, kind="pointwise"),
        residual=module.has_skip,
        drop_path=_drop_path(module),
    )


def _fused_mbconv(module: nn.Module) -> FusedMBConv | ConvBNAct:
    se = _squeeze_excite(module.se)
    if module.project is not None:
        expand, project = _conv_norm(module.expand), _conv_norm(module.project, kind="pointwise")
        return FusedMBConv(expand, se, project, module.has_skip, _drop_path(module))
    if se is not None:
        raise Unsupported("it has squeeze-and-excite but no projection")
    drop_path = _drop_path(module)
    return ConvBNAct(_conv_norm(module.expand), residual=module.has_skip, drop_path=drop_path)


def _drop_path(module: nn.Module) -> nn.Module | None:
    return _common.drop_path(module.drop_path, _library()[0].DropPath)
