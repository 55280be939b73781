"""The counting of bytes and operations against an independent model of the same networks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import python_ref
from benchmarks import ceilings
from benchmarks.roofline.floors import H200, Ceilings, seconds, shares, total
from benchmarks.roofline.kernels import LEVELS, Kernel, Level
from benchmarks.roofline.training import TRAINING
from benchmarks.sized_blocks import blocks_of
from effv2_kernels.launch import rates
from effv2_kernels.launch.targets import KNOWN

from .conftest import Run, keys

# For one image in bf16, for eager, compiled, fused and on chip: megabytes moved, GFLOP on tensor
# cores, million special-function operations, kernels, and microseconds on an H200. From a roofline
# model that was written without this one.
INDEPENDENT = {
    ("efficientnetv2_s", 384): {
        "moved": (502.2, 316.5, 153.8, 70.7),
        "tensor": (16.5, 16.5, 16.5, 18.0),
        "special": (63.1, 82.5, 63.1, 71.0),
        "kernels": (418, 281, 140, 102),
        "floor": (122.0, 79.5, 40.7, 32.3),
    },
    ("efficientnetv2_m", 480): {
        "moved": (1278.7, 799.5, 385.1, 182.3),
        "tensor": (48.7, 48.7, 48.7, 54.0),
        "special": (159.7, 214.4, 159.7, 181.9),
        "kernels": (601, 403, 201, 147),
        "floor": (317.2, 207.8, 108.6, 88.4),
    },
    ("efficientnetv2_l", 480): {
        "moved": (2250.9, 1406.2, 678.5, 316.7),
        "tensor": (111.3, 111.3, 111.3, 123.2),
        "special": (280.5, 376.2, 280.5, 319.4),
        "kernels": (833, 557, 278, 203),
        "floor": (581.5, 388.6, 214.0, 177.9),
    },
}

# The same for a training step: eager, compiled, fused.
INDEPENDENT_TRAINING = {
    ("efficientnetv2_s", 384): {
        "moved": (1629.9, 1078.7, 755.1),
        "tensor": (49.6, 49.6, 49.6),
        "special": (126.2, 228.2, 226.5),
        "kernels": (1224, 860, 553),
        "floor": (394.5, 267.1, 191.5),
    },
    ("efficientnetv2_m", 480): {
        "moved": (4173.3, 2727.0, 1880.7),
        "tensor": (145.9, 145.9, 145.9),
        "special": (319.4, 588.5, 585.3),
        "kernels": (1759, 1231, 789),
        "floor": (1030.0, 695.6, 495.8),
    },
    ("efficientnetv2_l", 480): {
        "moved": (7341.5, 4797.5, 3310.2),
        "tensor": (333.7, 333.7, 333.7),
        "special": (561.1, 1032.9, 1029.0),
        "kernels": (2437, 1702, 1090),
        "floor": (1881.5, 1293.4, 939.0),
    },
}


@pytest.mark.parametrize("levels", [LEVELS, TRAINING], ids=["inference", "training"])
@pytest.mark.parametrize(("name", "resolution"), INDEPENDENT)
def test_totals_agree_with_an_independent_model(
    name: str, resolution: int, levels: dict[str, Level]
) -> None:
    blocks = blocks_of(python_ref.create(name), resolution)
    expected = (INDEPENDENT if levels is LEVELS else INDEPENDENT_TRAINING)[name, resolution]
    for i, level in enumerate(levels.values()):
        kernels = [kernel for block in blocks for kernel in level.kernels(block, 2)]
        found = {
            "moved": sum(k.bytes for k in kernels) / 1e6,
            "tensor": sum(k.tensor for k in kernels) / 1e9,
            "special": sum(k.sfu for k in kernels) / 1e6,
            "kernels": len(kernels),
            "floor": 1e6 * total(kernels, H200),
        }
        for what, value in found.items():
            assert value == pytest.approx(expected[what][i], rel=0.05), f"{level.name}: {what}"


def test_the_blocks_are_the_same_in_every_library() -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    models = pytest.importorskip("torchvision.models", reason="torchvision is an extra")
    networks = [
        python_ref.create("s"),
        timm.create_model("efficientnetv2_s"),
        models.efficientnet_v2_s(),
    ]
    first, *others = ([b.shape for b in blocks_of(n, 225)] for n in networks)
    assert len(first) == 42
    assert all(other == first for other in others)


def test_macs_are_those_of_the_network() -> None:
    model = python_ref.create("b1")
    counted = sum(conv.macs for block in blocks_of(model, 240) for conv in block.convs)
    classifier = model.classifier.in_features * model.classifier.out_features
    gates = sum(2 * block.se_hidden * block.convs[-1].inputs[0] for block in blocks_of(model, 240))
    assert counted + classifier + gates == python_ref.count_macs(model, 240)


def test_looking_does_not_touch_the_model() -> None:
    model = python_ref.create("b0")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    blocks_of(model, 64)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_floors_units_are_those_that_launches_are_chosen_by() -> None:
    target = KNOWN["sm_90a"]
    clocks = target.multiprocessors * 1.755e9
    assert H200.plain == pytest.approx(2 * rates.of(target).float32 * clocks, rel=0.02)
    assert H200.sfu == pytest.approx(rates.SPECIAL * clocks, rel=0.02)


def test_measured_ceilings_take_a_gpus_units_from_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An A100 has half of a Hopper's fp32 lanes."""
    a100 = KNOWN["sm_80"]
    monkeypatch.setattr(ceilings.targets, "of_device", lambda device: a100)
    told = SimpleNamespace(clock_rate=1_410_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)
    plain, special = ceilings._by_units(torch.device("cuda"))
    assert plain == pytest.approx(19.5e12, rel=0.01) and special == pytest.approx(2.44e12, rel=0.01)


def test_the_busiest_unit_decides() -> None:
    device = Ceilings("a device", memory=10.0, tensor=100.0, plain=1.0, sfu=2.0)
    kernels = [Kernel("a", bytes=20.0, tensor=100.0), Kernel("b", bytes=10.0, sfu=12.0)]
    assert [seconds(k, device) for k in kernels] == [2.0, 6.0]
    assert total(kernels, device) == 8.0
    assert shares(kernels, device) == {"memory": 0.25, "tensor": 0.0, "plain": 0.0, "sfu": 0.75}


def test_blocks_are_measured_next_to_their_floors(small: Run) -> None:
    status, rows = small("roofline", "--batch", "2", "--dtype", "float32")
    assert status == 0
    blocks = {r.case for r in rows if r.metric == "block_us"}
    assert len(blocks) == 13
    assert any(": stem (1 x ConvBNAct" in case for case in blocks)
    assert any(": head (1 x ConvBNAct" in case for case in blocks)
    assert any("(2 x MBConv 96x" in case for case in blocks), "equal blocks share a line"
    assert {("effv2", "floor_us"), ("eager_nhwc", "part_of_floor")} <= keys(rows)
    assert {("pytorch", "bandwidth"), ("pytorch", "rate")} <= keys(rows)
