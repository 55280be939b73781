"""Fixtures for the whole suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.support import randomise

# Many outputs: the error of a few is a throw of dice.
CLASSES = 100
# Two workers of pytest-xdist with two threads each on two cores wait for one another.
torch.set_num_threads(1)


def _python_ref() -> nn.Module:
    import python_ref

    return python_ref.create("b0", num_classes=CLASSES)


def _timm() -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    return timm.create_model("tf_efficientnetv2_b0", num_classes=CLASSES)


def _torchvision() -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="torchvision is an extra")
    return models.efficientnet_b0(num_classes=CLASSES)


LIBRARIES: dict[str, Callable[[], nn.Module]] = {
    "python_ref": _python_ref,
    "timm": _timm,
    "torchvision": _torchvision,
}


@pytest.fixture(params=LIBRARIES)
def small_model(request: pytest.FixtureRequest) -> nn.Module:
    """A small network of each library, in eval mode, with random weights and BN statistics."""
    return randomise(LIBRARIES[request.param]()).eval()


@pytest.fixture
def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 65, 78, generator=generator)
