"""The network: stem, stages of MBConv and Fused-MBConv blocks, head, classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .blocks import DEFAULT_STYLE, ConvBNAct, ConvStyle, FusedMBConv, MBConv
from .variants import Stage, Variant, squeeze_channels

_BLOCKS: dict[str, type[MBConv] | type[FusedMBConv]] = {"mbconv": MBConv, "fused": FusedMBConv}


@dataclass(frozen=True)
class FeatureInfo:
    """One feature map that ``out_indices`` can ask for: the output of the last stage that has this
    ``reduction`` (input size / map size). ``stage`` counts from 1."""

    index: int
    stage: int
    channels: int
    reduction: int


class EfficientNet(nn.Module):
    """EfficientNet (arXiv 1905.11946) or EfficientNetV2 (arXiv 2104.00298), as ``variant`` says.

    Input (N, in_chans, H, W) in the parameters' dtype. Output (N, num_classes) logits; or, with
    ``num_classes=0``, the pooled head features (N, head width); or, with ``out_indices``, a list of
    feature maps (N, C, ceil(H / reduction), ceil(W / reduction)), described by ``feature_info``.

    ``drop_path`` is the stochastic depth rate that the paper's linear rule approaches: block i of n
    gets ``drop_path * i / n``. ``dropout=None`` takes the variant's own rate. Raises ValueError for
    values that make no network.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        style: ConvStyle = DEFAULT_STYLE,
        drop_path: float = 0.2,
        dropout: float | None = None,
        out_indices: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if in_chans < 1:
            raise ValueError(f"in_chans must be positive, got {in_chans}")
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path must be in [0, 1), got {drop_path}")
        self.variant = variant
        self.num_features = variant.head
        self.grad_checkpointing = False

        self.stem = ConvBNAct(in_chans, variant.stem, 3, 2, style=style)
        self.stages = _build_stages(variant, drop_path, style)
        self.head = ConvBNAct(variant.stages[-1].channels, variant.head, style=style)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(variant.dropout if dropout is None else dropout)
        self.feature_info = _describe_features(variant)
        self.out_indices = _check_indices(out_indices, len(self.feature_info))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _init_conv(module)
        self.reset_classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.out_indices is not None:
            return self.forward_intermediates(x, self.out_indices)
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) to the head's map (N, num_features, ceil(H / 32), ceil(W / 32))."""
        x = self.stem(x)
        for stage in self.stages:
            x = self._run_stage(stage, x)
        return self.head(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The head's map to logits (N, num_classes); ``pre_logits`` stops before the classifier."""
        x = self.dropout(self.pool(x).flatten(1))
        return x if pre_logits else self.classifier(x)

    def forward_intermediates(self, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """The maps of ``feature_info[i]`` for i in ``indices``, in that order. Stages after the
        last one needed do not run."""
        wanted = [self.feature_info[i].stage for i in indices]
        maps = {}
        x = self.stem(x)
        for number, stage in enumerate(list(self.stages.children())[: max(wanted)], 1):
            x = self._run_stage(stage, x)
            if number in wanted:
                maps[number] = x
        return [maps[number] for number in wanted]

    def reset_classifier(self, num_classes: int) -> None:
        """A freshly initialised classifier for ``num_classes``, on the head's device and dtype; 0
        leaves none. Raises ValueError for a negative number."""
        if num_classes < 0:
            raise ValueError(f"num_classes must not be negative, got {num_classes}")
        self.num_classes = num_classes
        if num_classes == 0:
            self.classifier: nn.Module = nn.Identity()
            return
        like = self.head.conv.weight
        self.classifier = nn.Linear(
            self.num_features, num_classes, device=like.device, dtype=like.dtype
        )
        bound = 1.0 / math.sqrt(num_classes)
        nn.init.uniform_(self.classifier.weight, -bound, bound)
        nn.init.zeros_(self.classifier.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs for the backward pass and compute the rest again there.

        Outputs, gradients and batch-norm buffers are those of the plain run.
        """
        self.grad_checkpointing = enable

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not self.grad_checkpointing or not torch.is_grad_enabled():
            return stage(x)
        for block in stage.children():
            x = _checkpointed(block, x)
        return x


def _build_stages(variant: Variant, drop_path: float, style: ConvStyle) -> nn.Sequential:
    total = sum(stage.layers for stage in variant.stages)
    index, in_chs, stages = 0, variant.stem, []
    for stage in variant.stages:
        blocks = []
        for layer in range(stage.layers):
            blocks.append(
                _BLOCKS[stage.kind](
                    in_chs,
                    stage.channels,
                    kernel=stage.kernel,
                    stride=stage.stride if layer == 0 else 1,
                    expand=stage.expand,
                    se_hidden=squeeze_channels(in_chs, stage.se_ratio),
                    drop_path=drop_path * index / total,
                    style=style,
                )
            )
            index, in_chs = index + 1, stage.channels
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages)


def _describe_features(variant: Variant) -> tuple[FeatureInfo, ...]:
    last_with: dict[int, tuple[int, Stage]] = {}
    reduction = 2  # the stem's
    for number, stage in enumerate(variant.stages, 1):
        reduction *= stage.stride
        last_with[reduction] = (number, stage)
    return tuple(
        FeatureInfo(index, number, stage.channels, reduction)
        for index, (reduction, (number, stage)) in enumerate(last_with.items())
    )


def _check_indices(indices: Sequence[int] | None, count: int) -> tuple[int, ...] | None:
    if indices is None:
        return None
    if not indices or not all(-count <= i < count for i in indices):
        raise ValueError(
            f"out_indices must be one or more of {-count} to {count - 1}, got {tuple(indices)}"
        )
    return tuple(indices)


def _init_conv(conv: nn.Conv2d) -> None:
    """The official initialisation: N(0, 2 / fan_out), where a depthwise filter's fan_out is its own
    k * k. PyTorch's ``kaiming_normal_`` ignores groups and would make depthwise filters tiny."""
    height, width = conv.kernel_size
    fan_out = height * width * conv.out_channels // conv.groups
    nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / fan_out))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    contexts: dict[str, Any] = {}
    # torch.compile takes no such context and needs none: it traces buffer updates only once.
    if not torch.compiler.is_compiling():
        contexts["context_fn"] = lambda: (nullcontext(), _spare_statistics(block))
    return checkpoint(block, x, use_reentrant=False, **contexts)


@contextmanager
def _spare_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms in training update copies of their buffers, so that computing a block a second
    time does not count its batch twice."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    originals = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    try:
        for norm, buffers in zip(norms, originals, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
