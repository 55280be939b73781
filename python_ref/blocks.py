"""The building blocks: convolution + BN + activation, squeeze-and-excite, the two MBConv forms.

All tensors are (N, C, H, W) in any floating dtype; blocks keep the dtype of their input, which must
be that of their parameters. Figure 2 of EfficientNetV2 (arXiv 2104.00298) draws both MBConv forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Padding = Literal["symmetric", "same"]


@dataclass(frozen=True)
class ConvStyle:
    """What a whole network decides once for all of its convolutions and batch norms.

    ``padding="symmetric"`` pads (k - 1) // 2 on every side, as PyTorch's own networks do;
    ``"same"`` follows TensorFlow, which weights from the official repository expect.
    """

    padding: Padding = "symmetric"
    bn_eps: float = 1e-3
    bn_momentum: float = 0.1

    def __post_init__(self) -> None:
        if self.padding not in ("symmetric", "same"):
            raise ValueError(f'padding must be "symmetric" or "same", got {self.padding!r}')

    def conv(self, in_chs: int, out_chs: int, kernel: int, stride: int, groups: int) -> nn.Conv2d:
        # With stride 1 and an odd kernel both paddings are the same static number.
        if self.padding == "same" and stride > 1:
            return Conv2dSame(in_chs, out_chs, kernel, stride, groups=groups, bias=False)
        pad = (kernel - 1) // 2
        return nn.Conv2d(in_chs, out_chs, kernel, stride, pad, groups=groups, bias=False)

    def norm(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, eps=self.bn_eps, momentum=self.bn_momentum)


DEFAULT_STYLE = ConvStyle()


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """TensorFlow's SAME padding (before, after) along one axis of length ``size``.

    The output has ceil(size / stride) elements; an odd total puts its extra element after.
    """
    reach = dilation * (kernel - 1)
    total = reach - (size - 1) % stride
    # Only a stride beyond the kernel can make it negative. Clamping only then keeps the size out
    # of any comparison, so that a traced dynamic size needs no guard.
    if reach < stride - 1:
        total = max(total, 0)
    return total // 2, total - total // 2


class Conv2dSame(nn.Conv2d):
    """``nn.Conv2d`` with TensorFlow's SAME padding, computed from each input's height and width.

    ``padding`` is (0, 0): what the convolution itself adds. Input (N, C, H, W), output
    (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=0,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = self._pads(x, axis=0)
        left, right = self._pads(x, axis=1)
        return super().forward(F.pad(x, (left, right, top, bottom)))

    def _pads(self, x: Tensor, axis: int) -> tuple[int, int]:
        size = x.shape[axis - 2]
        return same_padding(
            size, self.kernel_size[axis], self.stride[axis], int(self.dilation[axis])
        )


class ConvBNAct(nn.Module):
    """Convolution without bias, batch norm, and SiLU (``act=False``: no activation)."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        act: bool = True,
        style: ConvStyle = DEFAULT_STYLE,
    ) -> None:
        super().__init__()
        self.conv = style.conv(in_chs, out_chs, kernel, stride, groups)
        self.bn = style.norm(out_chs)
        self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the mean of all channels over H x W."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.act = nn.SiLU(inplace=True)
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(self.act(self.reduce(squeezed))))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, zeroes a sample's branch with probability
    ``rate`` and scales the surviving ones by 1 / (1 - rate), so that the mean stays."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        # One number a sample, drawn in the tensor's own dtype and on its own device.
        survives = torch.empty(
            (x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device
        ).bernoulli_(keep)
        return x * (survives / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"


def _squeeze_excite(channels: int, hidden: int) -> nn.Module:
    return SqueezeExcite(channels, hidden) if hidden else nn.Identity()


def _drop_path(rate: float, has_skip: bool) -> nn.Module:
    # Without the skip, a dropped branch would leave nothing of the sample.
    return DropPath(rate) if has_skip and rate > 0.0 else nn.Identity()


class MBConv(nn.Module):
    """Inverted residual: 1x1 expand, depthwise k x k, squeeze-and-excite, 1x1 project.

    ``expand`` is None when the ratio is 1; ``se_hidden=0`` leaves squeeze-and-excite out. Input
    (N, in_chs, H, W), output (N, out_chs, H', W') with H' = ceil(H / stride).
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        expand: int = 4,
        se_hidden: int = 0,
        drop_path: float = 0.0,
        style: ConvStyle = DEFAULT_STYLE,
    ) -> None:
        super().__init__()
        mid = in_chs * expand
        self.expand = ConvBNAct(in_chs, mid, style=style) if expand != 1 else None
        self.depthwise = ConvBNAct(mid, mid, kernel, stride, groups=mid, style=style)
        self.se = _squeeze_excite(mid, se_hidden)
        self.project = ConvBNAct(mid, out_chs, act=False, style=style)
        self.has_skip = stride == 1 and in_chs == out_chs
        self.drop_path = _drop_path(drop_path, self.has_skip)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        y = self.se(y)
        y = self.project(y)
        return x + self.drop_path(y) if self.has_skip else y


class FusedMBConv(nn.Module):
    """MBConv with its 1x1 expansion and depthwise convolution fused into one dense k x k.

    With an expansion ratio of 1 that convolution is the whole block: ``project`` is None and the
    activation comes before the residual addition. Input and output as in ``MBConv``.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        expand: int = 4,
        se_hidden: int = 0,
        drop_path: float = 0.0,
        style: ConvStyle = DEFAULT_STYLE,
    ) -> None:
        super().__init__()
        mid = in_chs * expand if expand != 1 else out_chs
        self.expand = ConvBNAct(in_chs, mid, kernel, stride, style=style)
        self.se = _squeeze_excite(mid, se_hidden)
        self.project = ConvBNAct(mid, out_chs, act=False, style=style) if expand != 1 else None
        self.has_skip = stride == 1 and in_chs == out_chs
        self.drop_path = _drop_path(drop_path, self.has_skip)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x)
        y = self.se(y)
        y = y if self.project is None else self.project(y)
        return x + self.drop_path(y) if self.has_skip else y
