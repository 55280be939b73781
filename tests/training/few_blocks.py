"""Small networks with every kind of block, and what a training step of them leaves behind."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.model import EfficientNet
from python_ref.variants import SE_RATIO, Stage, Variant
from tests.support import relative_error

CLASSES = 10
#: A fused block with a residual; MBConv with squeeze-and-excite, first with a stride, then with a
#: residual and a drop path. As few as can be: compiling takes seconds a block.
FEW = (
    Stage("fused", 3, 1, 4, 16, 1, 0.0),
    Stage("mbconv", 3, 2, 4, 24, 2, SE_RATIO),
)
#: Of every kind of block, enough to learn digits.
ENOUGH = (
    Stage("fused", 3, 1, 1, 16, 1, 0.0),
    Stage("fused", 3, 2, 4, 24, 2, 0.0),
    Stage("mbconv", 3, 2, 4, 32, 2, SE_RATIO),
)
_STEM, _HEAD = 16, 64
# A tensor this small beside the median one of its kind has no digits of its own.
_NOTHING = 0.1


def python_ref_network(
    stages: tuple[Stage, ...] = FEW, drop_path: float = 0.6, in_chans: int = 3
) -> nn.Module:
    variant = Variant("small", _STEM, stages, _HEAD, 0.0, 32, 32)
    return EfficientNet(variant, num_classes=CLASSES, in_chans=in_chans, drop_path=drop_path)


def timm_network(stages: tuple[Stage, ...] = FEW, drop_path: float = 0.6) -> nn.Module:
    pytest.importorskip("timm", reason="timm is an extra")
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet as Network

    return Network(
        decode_arch_def([[_timm_stage(stage)] for stage in stages]),
        num_classes=CLASSES,
        num_features=_HEAD,
        stem_size=_STEM,
        act_layer=nn.SiLU,
        drop_path_rate=drop_path,
    )


def _timm_stage(stage: Stage) -> str:
    kind = "ir" if stage.kind == "mbconv" else "er"
    text = f"{kind}_r{stage.layers}_k{stage.kernel}_s{stage.stride}_e{stage.expand}"
    return f"{text}_c{stage.channels}" + (f"_se{stage.se_ratio}" if stage.se_ratio else "")


NETWORKS = {"python_ref": python_ref_network, "timm": timm_network}


@dataclass(frozen=True)
class Step:
    """What a training step gave: the output; gradients, of the images too; buffers after it."""

    output: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def step(
    model: nn.Module, images: Tensor, run: Callable[[Tensor], Tensor] | None = None, seed: int = 3
) -> Step:
    """``run``: what calls the model, if not itself. Paths are dropped by ``seed``."""
    model.zero_grad(set_to_none=True)
    images = images.clone().requires_grad_()
    torch.manual_seed(seed)
    output = (model if run is None else run)(images)
    labels = torch.arange(len(images)) % CLASSES
    F.cross_entropy(output.float(), labels).backward()
    named = {"images": images, **dict(model.named_parameters())}
    return Step(
        output.detach(),
        {name: tensor.grad.clone() for name, tensor in named.items() if tensor.grad is not None},
        {name: buffer.clone() for name, buffer in model.named_buffers()},
    )


def images(batch: int, size: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=random, dtype=dtype)


def assert_same_step(found: Step, expected: Step, tolerance: float) -> None:
    """Each tensor by its relative error; one that is next to nothing beside the others of its kind
    (a gradient that the norm after it cancels) by what the others measure."""
    assert relative_error(found.output, expected.output) <= tolerance
    assert_same(found.gradients, expected.gradients, tolerance)
    assert_same(found.buffers, expected.buffers, tolerance)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in expected.items()}
    wrong = {n: e for n, e in errors(found, expected).items() if not e <= tolerance}
    assert not wrong, wrong


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    size = {n: _rms(t) for n, t in expected.items() if t.is_floating_point()}
    floor = _NOTHING * statistics.median(size.values())
    rounded = {
        n: _rms(found[n] - t) / max(s, floor)
        for (n, s), t in zip(size.items(), (expected[n] for n in size), strict=True)
    }
    counts = {n: float(not torch.equal(found[n], t)) for n, t in expected.items() if n not in size}
    return rounded | counts


def _rms(tensor: Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()
