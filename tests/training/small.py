"""Small networks of each library, and a step of them, patched and not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import effv2_kernels as ek
from tests.support import OurOps, randomise
from tests.training.compare import Step, step

CLASSES = 7
#: In float64 a step is the unpatched one, but for the order of sums, or wrong.
EXACT = 1e-11


def _python_ref(drop_path: float) -> nn.Module:
    from python_ref.model import EfficientNet
    from python_ref.variants import Stage, Variant

    stages = (
        Stage("fused", 3, 1, 1, 12, 1, 0.0),
        Stage("fused", 3, 2, 4, 20, 2, 0.25),
        Stage("mbconv", 5, 2, 4, 28, 2, 0.25),
        Stage("mbconv", 3, 1, 1, 28, 1, 0.0),
    )
    variant = Variant("small", 12, stages, 36, 0.0, 33, 33)
    return EfficientNet(variant, num_classes=CLASSES, drop_path=drop_path)


def _timm(drop_path: float) -> nn.Module:
    pytest.importorskip("timm", reason="timm is an extra")
    from timm.layers import get_norm_act_layer
    from timm.models import _efficientnet_builder as builder
    from timm.models.efficientnet import EfficientNet

    stages = [
        ["cn_r1_k3_s1_e1_c12_skip"],
        ["er_r2_k3_s2_e4_c20"],
        ["ir_r2_k5_s2_e4_c28_se0.25"],
        ["ds_r1_k3_s1_c28_se0.25"],
    ]
    return EfficientNet(
        builder.decode_arch_def(stages),
        num_classes=CLASSES,
        num_features=36,
        stem_size=12,
        fix_stem=True,
        round_chs_fn=lambda channels, **_: channels,
        pad_type="same",
        act_layer=nn.SiLU,
        norm_layer=get_norm_act_layer("batchnorm2d", nn.SiLU),
        drop_path_rate=drop_path,
    )


def _torchvision(drop_path: float) -> nn.Module:
    pytest.importorskip("torchvision", reason="torchvision is an extra")
    from torchvision.models import efficientnet as models

    stages = [
        models.FusedMBConvConfig(1, 3, 1, 16, 16, 1),
        models.FusedMBConvConfig(4, 3, 2, 16, 24, 2),
        models.MBConvConfig(4, 5, 2, 24, 32, 2),
        models.MBConvConfig(1, 3, 1, 32, 32, 1),
    ]
    return models.EfficientNet(
        stages, 0.0, stochastic_depth_prob=drop_path, num_classes=CLASSES, last_channel=36
    )


LIBRARIES: dict[str, Callable[[float], nn.Module]] = {
    "python_ref": _python_ref,
    "timm": _timm,
    "torchvision": _torchvision,
}


def network(library: str = "python_ref", drop_path: float = 0.0, seed: int = 0) -> nn.Module:
    """With every kind of block and fresh weights, in training mode and float64."""
    torch.manual_seed(seed)
    return randomise(LIBRARIES[library](drop_path), seed, size=33).double().train()


def images(number: int = 3, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 3, 33, 26, generator=generator, dtype=torch.float64)


def block(kind: str = "mbconv", seed: int = 0, **arguments: object) -> nn.Module:
    """A block of ``python_ref``, which takes 12 channels, with fresh weights, as in ``network``."""
    from python_ref import FusedMBConv, MBConv

    torch.manual_seed(seed)
    make = {"mbconv": MBConv, "fused": FusedMBConv}[kind]
    arguments = {"kernel": 3, "expand": 4, "se_hidden": 5, **arguments}
    made = make(12, arguments.pop("out_chs", 12), **arguments)
    return randomise(made, seed, size=11).double().train()


def maps(number: int = 3, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 12, 9, 7, generator=generator, dtype=torch.float64)


#: Of ``block``: kind and arguments, by name.
BLOCKS: dict[str, dict[str, object]] = {
    "mbconv": {},
    "mbconv of expansion 1": {"expand": 1},
    "mbconv without a gate": {"se_hidden": 0},
    "mbconv strided": {"stride": 2},
    "fused": {},
    "fused without a gate": {"se_hidden": 0},
    "fused of expansion 1": {"expand": 1, "se_hidden": 0},
}


def block_named(name: str) -> nn.Module:
    return block(name.split()[0], **BLOCKS[name])


def patched(model: nn.Module) -> nn.Module:
    """A patched copy, each block of which trains on our ops."""
    model = copy.deepcopy(model)
    report = ek.patch(model)
    assert report.patched and not report.skipped
    assert all(entry.training for entry in report.patched)
    return model


def our_ops(run: Callable[[], object]) -> list[str]:
    with OurOps() as ours:
        run()
    return ours.names


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def gradients(model: nn.Module, x: Tensor, of_x: bool = True) -> list[Tensor | None]:
    """Of the input and of every parameter."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_(of_x)
    mixed(model(x)).backward()
    return [x.grad, *(p.grad for p in model.parameters())]


def mixed(out: Tensor) -> Tensor:
    """A random weighting of it: the sum of a normed map does not depend on what was normed."""
    return (out * random_like(out)).sum()


def random_like(out: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(out.shape, generator=generator, dtype=out.dtype)


def assert_same(found: Step, right: Step, limit: float = EXACT) -> None:
    """The same names, counters, and values but for rounding. A gradient that is zero where sums are
    exact, of a shift or a scale that a norm undoes, is rounding: gradients are held against the
    thousandth of the largest one at least."""
    assert found.keys() == right.keys()
    largest = max(one.norm().item() for name, one in right.items() if name.startswith("d "))
    for name, one in right.items():
        assert found[name].dtype == one.dtype and found[name].shape == one.shape, name
        if not one.is_floating_point():
            assert torch.equal(found[name], one), name
            continue
        scale = one.norm().item()
        if name.startswith("d "):
            scale = max(scale, 1e-3 * largest)
        error = (found[name] - one).norm().item()
        assert error <= limit * scale, f"{name}: {error:.2e} of {scale:.2e}"


def assert_steps_as(plain: nn.Module, ours: nn.Module, x: Tensor, steps: int = 1) -> None:
    """Both do the same for so many steps, each of another input and other random numbers."""
    for i in range(steps):
        assert_same(step(ours, x + i, seed=i), step(plain, x + i, seed=i))


def assert_all_close(
    found: Sequence[Tensor | None], right: Sequence[Tensor | None], limit: float = EXACT
) -> None:
    """None where the right is None; else near to it, in the scale of the largest of all: what is
    rounding where the right is zero, such as the gradient of a shift that a norm undoes, is then
    far below it."""
    assert [f is None for f in found] == [r is None for r in right]
    there = [(f, r) for f, r in zip(found, right, strict=True) if f is not None and r is not None]
    scale = max((r.abs().max().item() for _, r in there), default=0.0)
    assert scale > 0.0, "nothing to compare"
    for number, (f, r) in enumerate(there):
        assert f.shape == r.shape and f.dtype == r.dtype
        error = (f.double() - r.double()).abs().max().item()
        assert error <= limit * scale, f"{number}: {error:.2e} of {scale:.2e}"
