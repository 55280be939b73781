"""DALI's images against those of the other decoders, on a CPU."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is an optional package")
pytest.importorskip("timm", reason="timm is an extra")
pytest.importorskip("torchvision", reason="torchvision is an extra")

from python_ref.recipe.dali import _operations_of  # noqa: E402
from python_ref.recipe.draws import Draw  # noqa: E402
from python_ref.recipe.errors import RecipeError  # noqa: E402
from python_ref.recipe.loader import Batch, training_loader  # noqa: E402
from python_ref.recipe.schedule import Regularisation, Schedule, Stage  # noqa: E402
from python_ref.recipe.transforms import OPERATIONS, Making, seed_everything  # noqa: E402
from tests.recipe.pictures import InMemory, encoded, in_memory, picture  # noqa: E402

NAMES = (*OPERATIONS, "Cutout")
STAGES = Schedule(
    "stages",
    (
        Stage(1.0, 64, Regularisation()),
        Stage(1.0, 96, Regularisation(8.5)),
        Stage(1.0, 64, Regularisation(mixup=0.4, cutmix=0.4)),
    ),
)


def draws(stage: int, count: int, first: int = 0) -> list[Draw]:
    return [Draw((first + i) % 12, 1000 * stage + first + i, stage) for i in range(count)]


def made(source: InMemory, plan: list[list[Draw]], decoder: str, workers: int = 0) -> list[Batch]:
    making = Making(decoder=decoder)
    with training_loader(source, STAGES, making, plan, smoothing=0.1, workers=workers) as loader:
        return list(loader)


def differences(found: Batch, expected: Batch) -> torch.Tensor:
    """Of every image, the mean over its pixels in levels of 256."""
    return (found.images.float() - expected.images.float()).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("stage", [0, 2])
def test_images_are_cropped_and_mixed_alike(stage: int) -> None:
    source = in_memory(12, 200, 150)
    plan = [draws(stage, 8), draws(stage, 5, 3), draws(stage, 10)]
    for found, expected in zip(made(source, plan, "dali"), made(source, plan, "tv"), strict=True):
        assert found.images.shape == expected.images.shape
        assert differences(found, expected).max() < 3
        assert torch.allclose(found.targets, expected.targets)
        assert found.seconds > 0


def chosen(seed: int) -> set[str]:
    """The names of the operations that a draw of stage 1 has, of an image of 200 by 150 pixels."""
    seed_everything(seed)
    Making().choose_box(200, 150)
    random.random()  # whether it is mirrored
    row = _operations_of(8.5, 96)
    return {NAMES[row["operation0"]], NAMES[row["operation1"]]}


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_is_that_of_timm(name: str) -> None:
    seeds = [seed for seed in range(3000) if name in chosen(seed)]
    plan = [[Draw(i, seed, 1) for i, seed in enumerate(seeds[:8])]]
    source = in_memory(12, 200, 150)
    errors = differences(made(source, plan, "dali")[0], made(source, plan, "tv")[0])
    assert errors.median() < (8 if name == "Equalize" else 2)  # OpenCV's is another


def test_workers_make_the_same_batches() -> None:
    plan = [draws(0, 4), draws(1, 6, 2), draws(2, 5, 5)]
    source = in_memory(12, 200, 150)
    here, there = made(source, plan, "dali"), made(source, plan, "dali", workers=2)
    assert all(torch.equal(a.images, b.images) for a, b in zip(here, there, strict=True))


def test_what_is_no_plain_jpeg_is_decoded_in_the_worker() -> None:
    source = in_memory(12, 200, 150)
    image = picture(200, 150, seed=1)
    source.files[1] = encoded(image, "PNG")
    source.files[2] = encoded(image.convert("CMYK"), "JPEG")
    source.files[3] = source.files[3][:-300]
    source.files[4] = b"no image"
    (found,), (expected,) = (made(source, [draws(0, 6)], name) for name in ("dali", "pil"))
    assert differences(found, expected).max() < 3
    assert [name[:12] for name in found.broken] == ["memory/3.jpg", "memory/4.jpg", "memory/4.jpg"]
    assert torch.equal(found.targets, expected.targets)


def test_a_jpeg_that_dali_refuses_ends_the_run_with_a_reason() -> None:
    source = in_memory(12, 200, 150)
    head = source.files[0].index(b"\xff\xda")
    source.files[0] = source.files[0][:head] + b"\xff\xd9"
    with pytest.raises(RecipeError, match="DALI cannot decode an image of memory"):
        made(source, [draws(0, 2)], "dali")


@pytest.mark.parametrize("making", [Making(erase=0.1), Making(cutout=True)])
def test_what_dali_lacks_is_refused(making: Making) -> None:
    with pytest.raises(RecipeError, match="--loader dali has no"):
        training_loader(in_memory(), STAGES, replace(making, decoder="dali"), [])
    automatic = replace(STAGES, policy="autoaugment")
    with pytest.raises(RecipeError, match="--loader dali has no"):
        training_loader(in_memory(), automatic, Making(decoder="dali"), [])
