"""The command, as a user gives it: what it writes, how it ends, and what it refuses."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import python_ref
from effv2_kernels.cli import main
from python_ref.recipe import Schedule, checkpoints
from tests.recipe import pictures, small

timm = pytest.importorskip("timm", reason="timm is an extra")

#: timm's smallest EfficientNetV2: seven blocks.
SMALL = (
    *("--model", "timm:test_efficientnet", "--workers", "0", "--device", "cpu"),
    *("--epochs", "2", "--batch", "8", "--warmup-epochs", "1", "--min-size", "32"),
    *("--max-size", "40", "--test-size", "40", "--stages", "2", "--min-area", "0.5"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return small.write_stripes(tmp_path_factory.mktemp("images"))


def train(*arguments: object) -> int:
    return main(["train", *map(str, arguments)])


def weights_in(output: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(output / "weights.safetensors")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name, t in expected.items() if not torch.equal(found[name], t)]


def test_from_a_folder_to_weights(folder: Path, tmp_path: Path, capsys) -> None:
    assert train(folder, *SMALL, "--output", tmp_path) == 0
    printed = capsys.readouterr().out
    for said in ("patched", "30 images of 10 classes", "RandAugment", "label_smoothing", "top-1"):
        assert said in printed, printed
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"schedule.json", "steps.csv", "evaluations.csv", "log.txt", "summary.png"}
    assert [s.size for s in Schedule.load(tmp_path / "schedule.json").stages] == [32, 40]

    written = weights_in(tmp_path)
    model = timm.create_model("test_efficientnet", num_classes=10)
    model.load_state_dict(written)
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    average = checkpoints.load(newest)["average"]
    assert all(torch.equal(model.state_dict()[n], t) for n, t in average.items())

    # A second time there is nothing left to do, and the weights are the same.
    assert train(folder, *SMALL, "--output", tmp_path) == 0
    assert "Stopped" not in capsys.readouterr().out
    assert_same(weights_in(tmp_path), written)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(folder: Path, tmp_path: Path, capsys, monkeypatch, number) -> None:
    """A checkpoint, status 0 and the command that goes on; and the same weights at the end."""
    monkeypatch.setattr("sys.argv", ["x", "train", "DIR", "--resume", "no", "--seed", "3"])
    before = signal.getsignal(number)

    def tell() -> None:
        steps = tmp_path / "stopped" / "steps.csv"
        while not steps.exists() or steps.read_text().count("\n") < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=tell)
    thread.start()
    options = (*SMALL, "--seed", 3, "--epochs", 20, "--deterministic")
    assert train(folder, *options, "--output", tmp_path / "stopped") == 0
    thread.join()
    assert signal.getsignal(number) is before
    printed = capsys.readouterr().out
    assert "To go on: python -m effv2_kernels train DIR --seed 3\n" in printed
    newest = checkpoints.newest(tmp_path / "stopped")
    assert newest is not None and f"step {checkpoints.load(newest)['step']}" in printed

    assert train(folder, *options, "--output", tmp_path / "stopped") == 0
    assert "going on from" in capsys.readouterr().out
    assert train(folder, *options, "--output", tmp_path / "whole") == 0
    assert_same(weights_in(tmp_path / "stopped"), weights_in(tmp_path / "whole"))


def test_plain(folder: Path, tmp_path: Path, capsys) -> None:
    assert train(folder, *SMALL, "--no-patch", "--output", tmp_path) == 0
    assert "blocks patched" not in capsys.readouterr().out


def test_finetuning(folder: Path, tmp_path: Path, capsys) -> None:
    """A new classifier on weights of other classes; the rest of them is where it begins."""
    first = python_ref.create("b0", num_classes=7)
    torch.save(first.state_dict(), tmp_path / "b0.pth")
    arguments = (
        *("--model", "b0", "--init", tmp_path / "b0.pth", "--workers", "0", "--device", "cpu"),
        *("--epochs", "0.1", "--batch", "4", "--max-size", "32", "--test-size", "32"),
    )
    output = tmp_path / "out"
    assert train(folder, *arguments, "--finetune", "--lr", "1e-12", "--output", output) == 0
    newest = checkpoints.newest(output)
    assert newest is not None
    found = checkpoints.load(newest)["network"]
    assert found["classifier.weight"].shape[0] == 10
    torch.testing.assert_close(found["stem.conv.weight"], first.stem.conv.weight.data)
    capsys.readouterr()
    assert train(folder, *arguments, "--output", tmp_path / "other") == 2
    assert "--finetune" in capsys.readouterr().err


def refused(capsys, *arguments: object) -> str:
    assert train(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 400, error
    return error


def test_bad_folders(tmp_path: Path, capsys) -> None:
    output = ("--output", tmp_path / "out")
    assert "nowhere" in refused(capsys, tmp_path / "nowhere", *SMALL, *output)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in refused(capsys, empty, *SMALL, *output)
    one = pictures.write_classes(tmp_path / "one", {"only": 4})
    assert "single class, only" in refused(capsys, one, *SMALL, *output)


@pytest.mark.parametrize(
    "options, word",
    [
        (("--min-size", "16"), "16"),
        (("--max-size", "31", "--min-size", "31"), "31"),
        (("--batch", "0"), "--batch"),
        (("--model", "efficientnetv2_z"), "efficientnetv2_z"),
        (("--schedule", "gone.json"), "gone.json"),
        (("--init", "gone.pth"), "gone.pth"),
        (("--resume", "gone.pt"), "gone.pt"),
        (("--finetune",), "--init"),
        (("--validation", "gone"), "gone"),
        (("--fsdp",), "torchrun"),
        (("--clip", "-1"), "--clip"),
        (("--test-size", "8"), "--test-size"),
        (("--dropout", "1"), "--dropout"),
        (("--min-area", "2"), "--min-area"),
        (("--workers", "-1"), "--workers"),
        (("--stages", "1"), "--min-size"),
        (("--device", "cuda:77"), "--device"),
        (("--device", "abacus"), "--device"),
        (("--batch", "31", "--device-batch", "8"), "--batch 31"),
    ],
)
def test_bad_options(folder: Path, tmp_path: Path, capsys, options, word) -> None:
    assert word in refused(capsys, folder, *SMALL, *options, "--output", tmp_path / "out")


def test_bad_files(folder: Path, tmp_path: Path, capsys) -> None:
    """Outputs that cannot be written, checkpoints of others, cut-off checkpoints."""
    (tmp_path / "file").write_text("")
    said = refused(capsys, folder, *SMALL, "--output", tmp_path / "file")
    assert "file" in said and "cannot be written" in said
    output = tmp_path / "out"
    assert train(folder, *SMALL, "--output", output) == 0
    capsys.readouterr()
    assert "--resume no" in refused(capsys, folder, *SMALL, "--resume", "no", "--output", output)
    newest = checkpoints.newest(output)
    assert newest is not None
    other = ("--model", "b0", "--resume", newest, "--output", tmp_path / "b")
    assert "--model timm:test_efficientnet" in refused(capsys, folder, *SMALL, *other)
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert newest.name in refused(capsys, folder, *SMALL, "--output", output)


def test_broken_images(folder: Path, tmp_path: Path, capsys) -> None:
    """Counted and named; too many of them stop the run."""
    import shutil

    images = tmp_path / "images"
    shutil.copytree(folder, images)
    (images / "class3" / "13.png").write_bytes(b"no image")
    assert train(images, *SMALL, "--output", tmp_path / "few") == 0
    assert "13.png" in (tmp_path / "few" / "log.txt").read_text()
    for path in sorted(images.glob("class[0-5]/*.png")):
        path.write_bytes(path.read_bytes()[:60])
    log = (tmp_path / "few" / "log.txt").read_text()
    assert log.count("left out: ") == 1 and "2 of 66 images could not be read" in log
    said = refused(capsys, images, *SMALL, "--epochs", 20, "--output", tmp_path / "many")
    assert "could not be read" in said and ".png" in said
