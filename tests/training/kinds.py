"""Every kind of block that trains on our ops, small and odd, and its module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from effv2_kernels import adapters
from effv2_kernels.adapters import python_ref as adapter
from effv2_kernels.blocks import Block, ConvBNAct
from effv2_kernels.running.structure import Watch, links_of
from effv2_kernels.running.training import BlockTrainer
from python_ref import blocks

_SAME, _SYMMETRIC = blocks.ConvStyle(padding="same"), blocks.ConvStyle()


class Trained(nn.Module):
    """A block on our training ops, whatever its module's own forward is."""

    def __init__(self, module: nn.Module, block: Block):
        super().__init__()
        self.module = module
        self.trainer = BlockTrainer(block, Watch(links_of(module)))

    def forward(self, x: Tensor) -> Tensor:
        assert self.trainer.usable(x)
        return self.trainer.run(x)


@dataclass(frozen=True)
class Kind:
    """act: in place of SiLU, in the squeeze-and-excite too; channels: of the input."""

    make: Callable[[], nn.Module]
    channels: int = 4
    act: type[nn.Module] = nn.SiLU
    gate: type[nn.Module] = nn.Sigmoid

    def module(self, seed: int = 0) -> nn.Module:
        """In float64 and training mode, affine parameters and running statistics at random."""
        torch.manual_seed(seed)
        module = self.make().double().train()
        for path, child in list(module.named_modules()):
            if isinstance(child, nn.BatchNorm2d):
                nn.init.uniform_(child.weight, 0.5, 1.5)
                nn.init.normal_(child.bias, 0, 0.5)
                nn.init.normal_(child.running_mean, 0, 0.3)
                nn.init.uniform_(child.running_var, 0.5, 2.0)
            for old, new in ((nn.SiLU, self.act), (nn.Sigmoid, self.gate)):
                if type(child) is old:
                    parent, _, name = path.rpartition(".")
                    setattr(module.get_submodule(parent), name, new())
        return module

    def trained(self, module: nn.Module) -> Trained:
        return Trained(module, described(module))

    def images(self, n: int = 3, height: int = 7, width: int = 5, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(
            n, self.channels, height, width, dtype=torch.float64, generator=generator
        )


def described(module: nn.Module) -> Block:
    if isinstance(module, blocks.ConvBNAct):  # a stem or a head, which is no candidate by itself
        return ConvBNAct(adapter._conv_norm(module))
    (found,) = (d for a in adapters.loaded() if (d := a.describe(module)) is not None)
    return found


def _conv(kernel: int, stride: int, style: blocks.ConvStyle = _SYMMETRIC) -> Kind:
    return Kind(lambda: blocks.ConvBNAct(3, 5, kernel, stride, style=style), channels=3)


def _mbconv(**options: object) -> Kind:
    return Kind(lambda: blocks.MBConv(4, options.pop("out_chs", 4), **options))


def _fused(**options: object) -> Kind:
    return Kind(lambda: blocks.FusedMBConv(4, options.pop("out_chs", 4), **options))


_MB = {"expand": 3, "se_hidden": 2}
KINDS = {
    "stem": _conv(3, 2),
    "stem SAME": _conv(3, 2, _SAME),
    "head": _conv(1, 1),
    "fused e1": _fused(expand=1, drop_path=0.4),
    "fused": _fused(expand=3, drop_path=0.4),
    "fused s2 SAME": _fused(expand=3, stride=2, out_chs=6, style=_SAME),
    "fused k5 SE": _fused(expand=3, kernel=5, se_hidden=2),
    "mbconv": _mbconv(**_MB, drop_path=0.4),
    "mbconv no SE": _mbconv(expand=3),
    "mbconv e1": _mbconv(expand=1, se_hidden=2, drop_path=0.4),
    "mbconv k5 s2": _mbconv(**_MB, kernel=5, stride=2, out_chs=6),
    "mbconv k5 s2 SAME": _mbconv(**_MB, kernel=5, stride=2, out_chs=6, style=_SAME),
    "mbconv k7": _mbconv(**_MB, kernel=7),
    "mbconv k3 s2 SAME": _mbconv(**_MB, stride=2, out_chs=6, style=_SAME),
}
KINDS |= {
    f"mbconv {act.__name__}": replace(_mbconv(**_MB, drop_path=0.4), act=act)
    for act in (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.GELU, nn.Identity)
}
KINDS["mbconv Hardsigmoid"] = replace(_mbconv(**_MB), gate=nn.Hardsigmoid)
