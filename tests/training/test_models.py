"""Whole networks in training: outputs, every gradient, the input's gradient and every buffer."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

import effv2_kernels as ek
import python_ref
from tests.support import randomise, timm_family
from tests.training.compare import assert_right, errors, step

timm = pytest.importorskip("timm", reason="timm is an extra")
models = pytest.importorskip("torchvision.models", reason="torchvision is an extra")

TIMM_MODELS = timm_family()
CLASSES = 10
WHOLE = {
    "timm V2-S": partial(timm.create_model, "tf_efficientnetv2_s", num_classes=CLASSES),
    "timm V2-B0": partial(timm.create_model, "tf_efficientnetv2_b0", num_classes=CLASSES),
    "timm V1-B0": partial(timm.create_model, "efficientnet_b0", num_classes=CLASSES),
    "torchvision V2-S": partial(models.efficientnet_v2_s, num_classes=CLASSES),
    "torchvision V1-B0": partial(models.efficientnet_b0, num_classes=CLASSES),
    "python_ref V2-S": partial(python_ref.create, "s", num_classes=CLASSES),
    "python_ref V2-B0": partial(python_ref.create, "b0", num_classes=CLASSES, padding="same"),
    "python_ref V1-B0": partial(python_ref.create, "efficientnet_b0", num_classes=CLASSES),
}


def without_dropout(model: nn.Module) -> nn.Module:
    """Without what draws numbers in the model's dtype: no two dtypes draw the same."""
    for module in model.modules():
        for rate in ("p", "drop_prob", "drop_rate", "rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model


def trained(model: nn.Module) -> None:
    """Patch it, and see that every patched block trains on our ops."""
    report = ek.patch(model)
    assert report.patched and all(entry.training for entry in report.patched)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", WHOLE)
def test_whole(name: str, autocast: bool) -> None:
    torch.manual_seed(0)
    model = without_dropout(randomise(WHOLE[name](), size=64)).train()
    context = partial(torch.autocast, "cpu", torch.bfloat16, enabled=autocast)
    assert_right(model, torch.randn(6, 3, 64, 57), trained, context)


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_every_family(name: str) -> None:
    """In float64, where a step is the unpatched one or wrong. Two blocks of each stage: the others
    are as the second."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES)
    size = model.default_cfg["input_size"][-1] if model.default_cfg.get("fixed_input_size") else 48
    for stage in getattr(model, "blocks", ()):
        for i in reversed(range(2, len(stage))):
            if getattr(stage[i], "has_skip", False):  # else it changes the channels
                del stage[i]
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    model = without_dropout(model).double().train()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    patched = copy.deepcopy(model)
    report = ek.patch(patched)
    assert all(entry.training for entry in report.patched)
    found, exact = step(patched, x), step(model, x)
    assert found.keys() == exact.keys()
    wrong = {name: error for name, error in errors(found, exact).items() if not error < 1e-9}
    assert not wrong
