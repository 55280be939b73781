"""Batches: the same in every process, mixed as timm mixes, whole though some files are broken."""

from __future__ import annotations

import pickle
import random
import subprocess
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("timm", reason="timm is an extra")
pytest.importorskip("torchvision", reason="torchvision is an extra")

from python_ref.recipe import loader as loading  # noqa: E402
from python_ref.recipe.batches import mix, probabilities, seed_mixing, stacked  # noqa: E402
from python_ref.recipe.draws import Draw  # noqa: E402
from python_ref.recipe.errors import RecipeError  # noqa: E402
from python_ref.recipe.loader import (  # noqa: E402
    Batch,
    Broken,
    Normalise,
    evaluation_loader,
    training_loader,
)
from python_ref.recipe.schedule import Regularisation, Schedule, Stage  # noqa: E402
from python_ref.recipe.transforms import Making, seed_everything  # noqa: E402
from tests.recipe.pictures import InMemory, in_memory  # noqa: E402

PLAIN = Schedule("plain", (Stage(1.0, 32, Regularisation()),), "none")
STAGES = Schedule(
    "stages",
    (
        Stage(1.0, 32, Regularisation(5.0)),
        Stage(1.0, 48, Regularisation(8.5, mixup=0.2, cutmix=0.3)),
    ),
)
SQUASHED = Making(crop=False, flip=0.0)


def draws(stage: int, count: int, first: int = 0, images: int = 12) -> list[Draw]:
    return [Draw((first + i) % images, 1000 * stage + first + i, stage) for i in range(count)]


def same(found: Sequence[Batch], expected: Sequence[Batch]) -> bool:
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
        for a, b in zip(found, expected, strict=True)
    )


def test_stages_change_within_one_loader() -> None:
    plan = [draws(0, 6), draws(0, 6, 6), draws(1, 4, 3)]
    made = list(training_loader(in_memory(), STAGES, Making(), plan, smoothing=0.1))
    assert [tuple(batch.images.shape) for batch in made] == [
        *[(6, 3, 32, 32)] * 2,
        (4, 3, 48, 48),
    ]
    assert [batch.size for batch in made] == [32, 32, 48]
    assert [batch.soft for batch in made] == [False, False, True]
    assert made[0].targets.tolist() == [0, 1, 2, 0, 1, 2] and made[0].targets.dtype == torch.int64
    assert made[2].targets.shape == (4, 3) and made[2].targets.dtype == torch.float32
    assert all(batch.seconds > 0 and batch.broken == () for batch in made)
    assert made[0].images.is_contiguous(memory_format=torch.channels_last)


def test_workers_make_the_same_batches() -> None:
    plan = [draws(0, 4), draws(1, 6, 2), draws(1, 5, 5), draws(0, 3, 7)]
    here = list(training_loader(in_memory(), STAGES, Making(), plan, smoothing=0.1))
    with training_loader(in_memory(), STAGES, Making(), plan, smoothing=0.1, workers=2) as there:
        assert same(list(there), here)
        assert same(list(there), here), "the same workers, once more"
    assert same(
        list(training_loader(in_memory(), STAGES, Making(), plan[1:], smoothing=0.1)), here[1:]
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_the_callers_random_numbers_stay(workers: int) -> None:
    seed_everything(3)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    seed_everything(3)
    with training_loader(in_memory(), STAGES, Making(), [draws(1, 4)], workers=workers) as loader:
        list(loader)
    with evaluation_loader(in_memory(), 32, batch=4, workers=workers) as loader:
        list(loader)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_mixing_has_random_numbers_of_its_own() -> None:
    plain, plan = replace(STAGES, policy="none"), [draws(1, 6)]
    (augmented,) = training_loader(in_memory(), STAGES, Making(), plan)
    (batch,) = training_loader(in_memory(), plain, Making(), plan)
    assert torch.equal(batch.targets, augmented.targets)
    assert not torch.equal(batch.images, augmented.images)


def test_batches_are_asked_for_one_after_another() -> None:
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield draws(0, 2, len(taken))

    batches = iter(training_loader(in_memory(), STAGES, Making(), endless()))
    assert [len(next(batches)) for _ in range(3)] == [2, 2, 2]
    assert taken == [0, 1, 2]


def test_a_batch_is_of_one_stage() -> None:
    loader = training_loader(in_memory(), STAGES, Making(), [draws(0, 2) + draws(1, 2)])
    with pytest.raises(ValueError, match="one stage"):
        list(loader)


def flat(levels: Sequence[int], size: int = 40) -> list[Tensor]:
    """Images of one level each."""
    return [torch.full((size, size, 3), level, dtype=torch.uint8) for level in levels]


def test_mixup_mixes_pixels_as_it_mixes_targets() -> None:
    targets = torch.eye(6)
    seed_mixing(0)
    levels = [0, 40, 80, 120, 160, 200]
    images, soft = mix(flat(levels), targets, Regularisation(mixup=1.0))
    expected = soft @ torch.tensor(levels, dtype=torch.float32)
    assert (images.float().amax(dim=(1, 2, 3)) - expected).abs().max() <= 0.5
    assert (images.float().amin(dim=(1, 2, 3)) - expected).abs().max() <= 0.5
    partners = soft * (1 - torch.eye(6))
    assert torch.equal(partners > 0, torch.eye(6).flip(0) > 0)
    assert len(set(soft.diagonal().tolist())) == 6, "every image has a part of its own"


def test_cutmix_mixes_areas_as_it_mixes_targets() -> None:
    seed_mixing(1)
    images, soft = mix(flat([10, 20, 30, 40]), torch.eye(4), Regularisation(cutmix=1.0))
    for row, own in enumerate((10, 20, 30, 40)):
        kept = (images[row, 0] == own).float().mean().item()
        assert set(images[row].unique().tolist()) <= {own, 50 - own}
        assert soft[row, row].item() == pytest.approx(kept)
        assert soft[row, 3 - row].item() == pytest.approx(1 - kept)


def test_with_both_each_image_has_one_of_them() -> None:
    seed_mixing(2)
    images, _ = mix(flat([0, 255] * 100), torch.eye(200), Regularisation(mixup=1.0, cutmix=1.0))
    blended = sum(((image > 5) & (image < 250)).any().item() for image in images)
    assert 70 < blended < 130


def test_the_last_of_an_odd_number_stays() -> None:
    targets = torch.eye(5)
    seed_mixing(3)
    images, soft = mix(flat([0, 50, 100, 150, 200]), targets, Regularisation(mixup=1.0))
    assert images.shape == (5, 3, 40, 40)
    assert (images[4] == 200).all() and torch.equal(soft[4], targets[4])
    assert 0 < images[0].max() < 150
    alone, target = mix(flat([7]), targets[:1], Regularisation(mixup=1.0))
    assert torch.equal(alone, stacked(flat([7]))) and torch.equal(target, targets[:1])


def test_smoothing_is_in_probabilities() -> None:
    plan = [draws(1, 4)]
    (batch,) = training_loader(in_memory(), STAGES, Making(), plan, smoothing=0.3)
    assert batch.targets.sum(1).tolist() == pytest.approx([1.0] * 4)
    assert batch.targets.min().item() == pytest.approx(0.1)


def test_several_labels_share_one() -> None:
    source = in_memory(2)
    source.of = [(0, 2), (1,)]
    (batch,) = training_loader(source, PLAIN, SQUASHED, [draws(0, 2)])
    assert batch.targets.tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
    (checked,) = evaluation_loader(source, 32, batch=2)
    assert torch.equal(checked.targets, batch.targets)
    smooth = probabilities(source.of, 4, 0.2)
    assert smooth.flatten().tolist() == pytest.approx(
        [0.45, 0.05, 0.45, 0.05, 0.05, 0.85, 0.05, 0.05]
    )


def with_broken(*broken: int, images: int = 12) -> InMemory:
    source = in_memory(images)
    for index in broken:
        source.files[index] = source.files[index][:100]
    return source


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_replaced_by_the_next_and_named(workers: int) -> None:
    plan = [draws(0, 3, 10)]  # of images 10, 11 and 0
    whole = in_memory()
    with training_loader(with_broken(11, 0), PLAIN, SQUASHED, plan, workers=workers) as loader:
        (batch,) = loader
    assert batch.targets.tolist() == [10 % 3, 1 % 3, 1 % 3]
    (expected,) = training_loader(
        whole,
        PLAIN,
        SQUASHED,
        [[replace(draw, index=i) for draw, i in zip(plan[0], (10, 1, 1), strict=True)]],
    )
    assert torch.equal(batch.images, expected.images)
    names = [name.partition(": ")[0] for name in batch.broken]
    assert names == ["memory/11.jpg", "memory/0.jpg", "memory/0.jpg"]
    assert batch.broken[0].lower().endswith("truncated file read")


def test_a_file_that_is_gone_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: InMemory, index: int) -> bytes:
        if index == 0:
            raise FileNotFoundError(2, "No such file", "0.jpg")
        return self.files[index]

    monkeypatch.setattr(InMemory, "read", read)
    (batch,) = training_loader(in_memory(), PLAIN, SQUASHED, [draws(0, 2)])
    assert len(batch) == 2 and "No such file" in batch.broken[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_of_broken_images_ends_the_run(workers: int) -> None:
    source = with_broken(*range(12))
    with (
        training_loader(source, PLAIN, SQUASHED, [draws(0, 2)], workers=workers) as loader,
        pytest.raises(RecipeError, match=r"^100 images in a row cannot be read, .*memory/\d+.jpg"),
    ):
        list(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_making_names_the_image(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(loading.training_images(SQUASHED, PLAIN)[0].__class__, "finish", None)
    with (
        training_loader(in_memory(), PLAIN, SQUASHED, [draws(0, 2, 4)], workers=workers) as loader,
        pytest.raises(RuntimeError, match="memory/4.jpg: 'NoneType'"),
    ):
        list(loader)


def test_validation_takes_every_image_once_in_order() -> None:
    source = in_memory(11)
    whole = list(evaluation_loader(source, 32, batch=4))
    assert [len(batch) for batch in whole] == [4, 4, 3]
    assert torch.cat([batch.targets for batch in whole]).tolist() == [i % 3 for i in range(11)]
    parts = [list(evaluation_loader(source, 32, batch=4, rank=r, world=2)) for r in range(2)]
    images = torch.cat([batch.images for batch in whole])
    for rank, part in enumerate(parts):
        assert torch.equal(torch.cat([batch.images for batch in part]), images[rank::2])
    with evaluation_loader(source, 32, batch=4, workers=2) as loader:
        assert same(list(loader), whole) and same(list(loader), whole)


def test_validation_leaves_broken_images_out() -> None:
    first, second = evaluation_loader(with_broken(1, 4, 5, images=6), 32, batch=4)
    assert first.targets.tolist() == [0, 2, 0] and len(first.images) == 3
    assert len(second) == 0 and second.images.shape == (0, 3, 32, 32)
    assert [len(batch.broken) for batch in (first, second)] == [1, 2]


def batch_of(good: int, broken: int) -> Batch:
    names = tuple(f"{number}.jpg: cut" for number in range(broken))
    return Batch(torch.empty(good, 3, 8, 8), torch.zeros(good), broken=names)


def test_few_broken_images_are_counted() -> None:
    broken = Broken()
    for _ in range(3):
        broken.add(8, [f"{i}.jpg: cut" for i in range(3)])
        broken.check()
    assert not broken.add(0, ["1.jpg: cut"]) and broken.add(1, ["9.jpg: cut"] * 2) == ["9.jpg: cut"]
    broken.count -= 3
    broken.tried -= 1
    assert (broken.tried, broken.count, len(broken.names)) == (24, 9, 4)


def test_more_broken_images_than_the_share_end_the_run() -> None:
    broken = Broken(share=0.02)
    broken.add(1000, [f"{i}.jpg: cut" for i in range(20)])
    broken.check()
    broken.add(1, ["20.jpg: cut"])
    with pytest.raises(RecipeError, match=r"21 of 1001 images.*more than 2.0%.*20.jpg: cut"):
        broken.check()


def test_normalised_pixels() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    half = Normalise("half")(images)
    assert half.is_contiguous(memory_format=torch.channels_last) and half.dtype == torch.float32
    assert torch.allclose(half, images.float() / 127.5 - 1, atol=1e-6)
    imagenet = Normalise("imagenet", channels_last=False)(images)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (images / 255 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    assert imagenet.is_contiguous() and torch.allclose(imagenet, expected, atol=1e-6)
    rounded = Normalise("imagenet", dtype=torch.bfloat16)(images)
    assert rounded.dtype == torch.bfloat16 and torch.equal(rounded, expected.bfloat16())


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_workers_outlive_a_signal_to_all(name: str) -> None:
    plan = [draws(0, 2, first) for first in range(40)]
    with training_loader(in_memory(), PLAIN, SQUASHED, plan, workers=1, prefetch=2) as loader:
        batches = iter(loader)
        next(batches)
        (worker,) = torch.multiprocessing.active_children()
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
        assert len(list(batches)) == 39
    assert not worker.is_alive()


def test_a_worker_ends_when_its_parent_terminates_it() -> None:
    with training_loader(in_memory(), PLAIN, SQUASHED, [draws(0, 2)], workers=1) as loader:
        next(iter(loader))
        (worker,) = torch.multiprocessing.active_children()
        worker.terminate()
        worker.join(timeout=20)
        assert worker.exitcode == 0


def test_what_workers_need_can_be_sent_to_them() -> None:
    loader = training_loader(in_memory(), STAGES, Making(), [])
    assert pickle.loads(pickle.dumps(loader._loader.dataset))
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        next(iter(loader))
