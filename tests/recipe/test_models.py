"""Networks by name, and what each wants of its images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import python_ref
from python_ref.recipe import models
from python_ref.recipe.errors import RecipeError


@pytest.mark.parametrize(
    "name",
    ["b0", "efficientnetv2_b0", "efficientnet_v2_b0", "efficientnet_b0", "v1_b0"],
)
def test_own_networks_by_any_of_their_names(name):
    with torch.device("meta"):
        model = models.create(name, 7, drop_path=0.3, dropout=0.4)
    assert isinstance(model, python_ref.EfficientNet)
    assert model.classifier.out_features == 7
    assert model.dropout.p == 0.4
    last = [m for m in model.modules() if isinstance(m, python_ref.DropPath)][-1]
    assert last.rate == pytest.approx(0.3, rel=0.15)


def test_rates_of_none_are_the_librarys_own():
    with torch.device("meta"):
        assert models.create("b3", 7).dropout.p == 0.3


def test_timms_networks():
    pytest.importorskip("timm", reason="timm is an extra")
    with torch.device("meta"):
        model = models.create("timm:tf_efficientnetv2_b0.in1k", 7, drop_path=0.3, dropout=0.4)
    assert model.classifier.out_features == 7
    assert model.drop_rate == 0.4
    assert model.blocks[5][7].drop_path.drop_prob == pytest.approx(0.3, rel=0.15)


def test_torchvisions_networks():
    pytest.importorskip("torchvision", reason="torchvision is an extra")
    with torch.device("meta"):
        model = models.create("torchvision:efficientnet_v2_s", 7, drop_path=0.3, dropout=0.4)
    assert model.classifier[1].out_features == 7
    assert model.classifier[0].p == 0.4
    last = [m for m in model.modules() if type(m).__name__ == "StochasticDepth"][-1]
    assert last.p == pytest.approx(0.3, rel=0.15)


def test_rates_that_a_network_does_not_have():
    pytest.importorskip("torchvision", reason="torchvision is an extra")
    with torch.device("meta"):
        model = models.create("torchvision:resnet18", 7, drop_path=0.0, dropout=None)
        assert isinstance(model, nn.Module)
        with pytest.raises(RecipeError, match="torchvision:resnet18 has no drop paths"):
            models.create("torchvision:resnet18", 7, drop_path=0.2)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("efficientnetv2_x", "efficientnetv2_xl"),
        ("efficientnet_v2_s1", "efficientnetv2_s"),
        ("resnet50", "timm:resnet50, torchvision:resnet50"),
        ("timm:efficientnet_v2_s", "torchvision:efficientnet_v2_s, timm:efficientnetv2_s"),
        ("keras:b0", "b0"),
    ],
)
def test_unknown_names_have_what_is_near_beside_them(name, near):
    pytest.importorskip("timm", reason="timm's names are proposed")
    pytest.importorskip("torchvision", reason="torchvision's names are proposed")
    with pytest.raises(RecipeError, match=f"--model {name}: there is no such network.*{near}"):
        models.create(name, 7)


def test_libraries_that_are_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(RecipeError, match=r"effv2_kernels\[train\]"):
        models.create("timm:resnet50", 7)
    with pytest.raises(RecipeError, match="near it: efficientnetv2_s"):
        models.create("efficientnetv2_z", 7)


@pytest.mark.parametrize(
    ("name", "network", "statistics", "rule", "training", "test"),
    [
        ("s", "s", "half", "official", 300, 384),
        ("efficientnetv2_xl", "xl", "half", "official", 384, 512),
        ("efficientnetv2_b0", "b0", "imagenet", "legacy", 192, 224),
        ("efficientnet_b4", None, "imagenet", "legacy", 304, 380),
        ("timm:tf_efficientnetv2_m.in21k_ft_in1k", "m", "half", "official", 384, 480),
        ("timm:efficientnetv2_rw_s", None, "imagenet", "legacy", 288, 384),
        ("timm:resnet50", None, "imagenet", "legacy", 224, 288),
        ("torchvision:efficientnet_v2_s", "s", "imagenet", "official", 300, 384),
        ("torchvision:efficientnet_v2_l", "l", "half", "official", 384, 480),
        ("torchvision:resnet50", None, "imagenet", "legacy", 224, 224),
    ],
)
def test_what_a_network_wants(name, network, statistics, rule, training, test):
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="its configuration is read")
    assert models.schedule_network(name) == network
    assert models.normalisation(name) == statistics
    assert models.evaluation_rule(name) == rule
    assert models.training_size(name) == training
    assert models.evaluation_size(name) == test
