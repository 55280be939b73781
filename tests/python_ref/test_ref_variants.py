"""Sizes of the networks, their names, and where Fused-MBConv is placed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import python_ref
from python_ref import Placement, count_macs
from python_ref.variants import find, round_channels_v1, round_channels_v2

# resolution, parameters, GMACs
COSTS = {
    "efficientnetv2_b0": (224, 7_139_704, 0.718),
    "efficientnetv2_b1": (240, 8_141_052, 1.197),
    "efficientnetv2_b2": (260, 10_096_086, 1.698),
    "efficientnetv2_b3": (300, 14_358_406, 3.011),
    "efficientnetv2_s": (384, 21_458_488, 8.366),
    "efficientnetv2_m": (480, 54_139_356, 24.582),
    "efficientnetv2_l": (480, 118_515_272, 56.080),
    "efficientnetv2_xl": (512, 208_119_808, 93.353),
    "efficientnet_b0": (224, 5_288_548, 0.386),
    "efficientnet_b1": (240, 7_794_184, 0.687),
    "efficientnet_b2": (260, 9_109_994, 0.994),
    "efficientnet_b3": (300, 12_233_232, 1.827),
    "efficientnet_b4": (380, 19_341_616, 4.394),
    "efficientnet_b5": (456, 30_389_784, 10.266),
    "efficientnet_b6": (528, 43_040_704, 19.068),
    "efficientnet_b7": (600, 66_347_960, 37.746),
}


def on_meta(name: str, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return python_ref.create(name, **kwargs)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("name", COSTS)
def test_parameters_and_macs(name, padding):
    resolution, params, gmacs = COSTS[name]
    model = on_meta(name, padding=padding)
    assert parameters(model) == params
    assert count_macs(model, resolution) / 1e9 == pytest.approx(gmacs, rel=1e-3)
    assert find(name).eval_size == resolution


def test_costs_cover_every_variant():
    assert set(COSTS) == set(python_ref.VARIANTS)


@pytest.mark.parametrize("name", COSTS)
def test_one_function_a_variant(name):
    with torch.device("meta"):
        model = getattr(python_ref, name)(num_classes=7, padding="same")
    assert model.variant is find(name)
    assert model.classifier.out_features == 7
    assert isinstance(model.stem.conv, python_ref.Conv2dSame)


@pytest.mark.parametrize(
    ("alias", "canonical"),
    [
        ("s", "efficientnetv2_s"),
        ("b3", "efficientnetv2_b3"),
        ("v2_xl", "efficientnetv2_xl"),
        ("efficientnet_v2_m", "efficientnetv2_m"),
        ("v1_b4", "efficientnet_b4"),
        ("efficientnet_b7", "efficientnet_b7"),
    ],
)
def test_aliases(alias, canonical):
    assert find(alias).name == canonical


@pytest.mark.parametrize("name", ["b4", "v1_s", "efficientnetv2_b4", "resnet50", ""])
def test_unknown_names_are_told_what_there_is(name):
    with pytest.raises(ValueError, match=r"unknown variant.*efficientnetv2_b0.*efficientnet_b7"):
        python_ref.create(name)


def test_rounding_rules_differ_where_ten_percent_would_be_lost():
    # B3's first stage, the one place where the two rules part: 16 * 1.2 = 19.2.
    assert round_channels_v2(16, 1.2) == 16
    assert round_channels_v1(16, 1.2) == 24
    assert round_channels_v2(1, 1.0) == round_channels_v1(1, 1.0) == 8
    assert round_channels_v2(1280, 1.1) == round_channels_v1(1280, 1.1) == 1408


# Table 3 of the paper, B4 at 380: fused stages, kernel, squeeze-and-excite -> M params, GMACs.
TABLE_3 = [
    (0, 3, False, 19.3, 4.4),
    (0, None, True, 19.3, 4.4),
    (3, 3, False, 19.9, 7.3),
    (3, 3, True, 20.0, 7.3),
    (5, None, False, 43.5, 23.0),
    (7, None, False, 132.1, 36.0),
]


@pytest.mark.parametrize(("last", "kernel", "squeeze", "params", "gmacs"), TABLE_3)
def test_placement_builds_table_3(last, kernel, squeeze, params, gmacs):
    fused = tuple(range(1, last + 1))
    model = on_meta("v1_b4", placement=Placement(fused, kernel=kernel, squeeze_excite=squeeze))
    assert round(parameters(model) / 1e6, 1) == params
    assert round(count_macs(model, 380) / 1e9, 1) == gmacs
    for number, stage in enumerate(model.stages, 1):
        kind = python_ref.FusedMBConv if number <= last else python_ref.MBConv
        assert all(type(block) is kind for block in stage)
        if number <= last:
            own = find("v1_b4").stages[number - 1].kernel
            wanted = kernel or own
            assert all(block.expand.conv.kernel_size == (wanted, wanted) for block in stage)
            assert all(isinstance(b.se, python_ref.SqueezeExcite) == squeeze for b in stage)


def test_placement_by_kinds():
    kinds = ["fused"] * 5 + ["mbconv"] * 2
    by_kinds = on_meta("v1_b4", placement=kinds)
    by_number = on_meta("v1_b4", placement=Placement(fused=(1, 2, 3, 4, 5)))
    assert by_kinds.variant == by_number.variant
    # What is already of the asked kind stays as it is.
    assert on_meta("s", placement=["fused"] * 3 + ["mbconv"] * 3).variant == find("s")


def test_placement_gives_squeeze_and_excite_to_stages_that_become_mbconv():
    model = on_meta("s", placement=Placement(fused=()))
    block = model.stages[1][0]  # 24 channels in, expansion 4
    assert isinstance(block, python_ref.MBConv)
    assert block.se.reduce.weight.shape == (6, 96, 1, 1)
    assert model.stages[0][0].expand is None


@pytest.mark.parametrize("kwargs", [{}, {"kernel": 5, "squeeze_excite": True}])
def test_placed_networks_run(kwargs):
    model = python_ref.create("b0", placement=Placement((1, 4), **kwargs)).eval()
    assert torch.isfinite(model(torch.randn(1, 3, 33, 40))).all()


@pytest.mark.parametrize(
    "placement", [["fused"], ["fused"] * 8, ["dense"] * 7, "1-3", Placement(fused=(0, 1))]
)
def test_impossible_placements(placement):
    with pytest.raises(ValueError, match="placement"):
        on_meta("v1_b4", placement=placement)


def test_count_macs_by_hand():
    model = nn.Sequential(
        nn.Conv2d(4, 6, (3, 1), stride=2, padding=(1, 0), groups=2),  # 5x7 -> 3x4, 2*3 weights
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )
    assert count_macs(model, (5, 7)) == 6 * 3 * 4 * 6 + 6 * 5


def test_count_macs_leaves_the_model_alone():
    model = python_ref.create("b0").double().train()
    model.stages[2].eval()
    flags = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert count_macs(model, 32) == count_macs(on_meta("b0"), 32) > 0
    assert [m.training for m in model.modules()] == flags
    assert not any(m._forward_hooks for m in model.modules())
    for key, value in model.state_dict().items():
        assert value.device.type == "cpu" and torch.equal(value, before[key]), key
