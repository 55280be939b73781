from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import effv2_kernels
from effv2_kernels.cli import demo, main
from effv2_kernels.measuring import networks

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

SMALL = ["--resolution", "33", "--batch", "1", "2", "--rounds", "2", "--device", "cpu"]


def small_demo(folder: Path, *more: str) -> int:
    return main(["demo", *SMALL, "--output", str(folder), *more])


@pytest.mark.parametrize(
    ("library", "model"),
    [("timm", "efficientnet_b0"), ("python_ref", "efficientnetv2_b0")],
)
def test_end_to_end(
    library: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(library)
    assert small_demo(tmp_path, "--library", library, "--model", model) == 0
    shown = capsys.readouterr().out
    assert "random weights: the labels mean nothing" in shown
    assert "8 and 8 of 8 images" in shown
    assert float(re.search(r"([\d.]+)% of the conv", shown)[1]) > 99
    assert "eager contiguous" in shown and "eager channels_last" in shown
    assert f"{library}, patched" in shown
    assert ("python_ref, patched" in shown) and ("same weights" in shown) == (library == "timm")
    chart = tmp_path / f"{model}_cpu.png"
    assert chart.read_bytes().startswith(b"\x89PNG") and str(chart) in shown


def test_weights_and_image_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    network = networks.build("efficientnetv2_b0", "python_ref")
    torch.save(network.model.state_dict(), tmp_path / "weights.pth")
    Image.new("L", (50, 40), 128).save(tmp_path / "grey.png")
    files = ["--weights", str(tmp_path / "weights.pth"), "--image", str(tmp_path / "grey.png")]
    assert small_demo(tmp_path, "--library", "python_ref", "--model", network.name, *files) == 0
    shown = capsys.readouterr().out
    assert "grey.png" in shown and "weights.pth" in shown
    assert "random weights" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--library", "python_ref", "--model", "resnet50"],
        ["--library", "python_ref", "--weights", "/nonexistent.pth"],
        ["--library", "python_ref", "--image", "/nonexistent.jpg"],
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_demo(tmp_path, *arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_missing_package_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert small_demo(tmp_path) == 2
    shown = capsys.readouterr().out
    assert 'pip install "effv2_kernels[demo]"' in shown and len(shown.splitlines()) == 1


def test_a_wrong_patch_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = effv2_kernels.patch

    def wrong(model: nn.Module) -> effv2_kernels.PatchReport:
        report = honest(model)
        with torch.no_grad():
            model.classifier.bias.add_(0.1)
        return report

    monkeypatch.setattr(effv2_kernels, "patch", wrong)
    arguments = ["--library", "python_ref", "--model", "efficientnetv2_b0"]
    assert small_demo(tmp_path, *arguments) == 1
    assert "wrong: nothing is timed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_calibrated_norms_give_activations_of_scale_one() -> None:
    network = networks.build("efficientnetv2_b0", "python_ref")
    images = torch.randn(16, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    before = {n: p.clone() for n, p in network.model.named_parameters()}
    norm = network.model.head.bn
    networks.calibrate(network.model, [images])
    seen: list[torch.Tensor] = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        network.model(images)
    assert 0.5 < float(seen[0].std()) < 1.5  # 0.004 with the default statistics
    assert not network.model.training and norm.momentum == 0.1
    assert all(torch.equal(p, before[n]) for n, p in network.model.named_parameters())


def test_building_is_seeded_and_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    first, second = (networks.build("efficientnetv2_b0", "python_ref").model for _ in range(2))
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert torch.equal(torch.get_rng_state(), state)
