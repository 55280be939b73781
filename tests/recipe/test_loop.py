"""The loop: what a step does, where it stops, and that it goes on as if it never had."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import effv2_kernels as ek
from python_ref.recipe import RecipeError, Regularisation, checkpoints, fixed, preset
from python_ref.recipe.loop import Trainer
from python_ref.recipe.optimisation import make_optimizer
from tests.recipe import small
from tests.training.few_blocks import FEW, python_ref_network, timm_network


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    live = {f"live {n}": t.clone() for n, t in trainer.learner.model.state_dict().items()}
    return live | {f"average {n}": t.clone() for n, t in trainer.learner.average.tensors.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [n for n, t in expected.items() if not torch.equal(found[n], t)]


def assert_moved_alike(
    found: dict[str, Tensor], expected: dict[str, Tensor], before: dict[str, Tensor], part: float
) -> None:
    """Weights by how far they have gone; not the betas before another norm, which only rounding
    moves."""
    weights = [n for n, t in expected.items() if t.ndim > 1]
    apart = {
        n: ((found[n] - expected[n]).norm() / (expected[n] - before[n]).norm()).item()
        for n in weights
    }
    assert not {n: e for n, e in apart.items() if not e < part}, apart


def test_a_step_by_hand() -> None:
    """One stage, nothing random: as PyTorch's own loop would do it."""
    recipe = small.recipe(epochs=2.0, drop_path=0.0, lr=0.02, clip=1.0, label_smoothing=0.2)
    of = fixed("one", 32, Regularisation(), 2.0, "none")
    trainer = small.trainer(recipe, of=of, network=lambda: python_ref_network(FEW, drop_path=0.0))
    model = copy.deepcopy(trainer.learner.model)
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, recipe)
    batches = list(small.trainer(recipe, of=of).training_loader())
    for number, batch in enumerate(batches):
        epoch = number * 8 / 40
        warm = min(epoch, 1.0) if epoch < 1 else 0.97 ** math.floor(epoch / 2.4)
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * 8 / 256 * warm
        output = model((batch.images.float() / 255 - 0.5) / 0.5)
        F.cross_entropy(output, batch.targets, label_smoothing=0.2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    trainer.run()
    assert len(batches) == trainer.number == 10
    assert_moved_alike(trainer.learner.model.state_dict(), model.state_dict(), before, 1e-3)


def test_accumulation_is_the_mean() -> None:
    """Without batch norm's own statistics, parts of a step add up to the whole."""

    def trained(parts: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        recipe = small.recipe(epochs=1.0, device_batch=8 // parts, drop_path=0.0, optimizer="sgd")
        of = fixed("one", 32, Regularisation(), 1.0, "none")
        trainer = small.trainer(
            recipe, of=of, network=lambda: _frozen(python_ref_network(FEW, drop_path=0.0))
        )
        assert trainer.stream.accumulate == parts
        before = state_of(trainer)
        trainer.run()
        return state_of(trainer), before

    (whole, before), (parts, _) = trained(1), trained(4)
    assert_moved_alike(parts, whole, before, 1e-3)


def _frozen(model: nn.Module) -> nn.Module:
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.train = lambda mode=True, norm=norm: norm
        norm.training = False
    return model


def test_stages_change_everything(tmp_path: Path) -> None:
    seen: list[tuple[int, float, int]] = []
    of = small.schedule().with_larger_batches()

    def watch(model: nn.Module) -> None:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training:
                rate = round(model.dropout.rate.item(), 3)
                seen.append((inputs[0].shape[-1], rate, len(inputs[0])))

        model.register_forward_pre_hook(look)

    recipe = small.recipe(device_batch=32)
    result = small.trainer(recipe, of=of, prepare=watch).run()
    sizes = [(32, 0.1, 18), (40, 0.2, 11), (48, 0.3, 8)]
    assert list(dict.fromkeys(seen)) == sizes
    assert result.images == {32: 54, 40: 33, 48: 40}
    assert result.finished and len(result.evaluations) == 1 and result.seconds > 0


@pytest.mark.parametrize("how", ["plain", "patched", "accumulated", "workers", "timm"])
def test_resumes_bit_for_bit(tmp_path: Path, how: str) -> None:
    """Stopped after every number of steps: the rest ends in the same weights, averages and
    evaluation."""
    settings: dict = {"prepare": ek.patch} if how == "patched" else {}
    if how == "timm":
        settings["network"] = lambda: timm_network(FEW, drop_path=0.3)
    recipe = small.recipe(
        device_batch=4 if how == "accumulated" else 8,
        workers=2 if how == "workers" else 0,
        evaluate_every=1.0,
        save_steps=1,
    )
    whole = small.trainer(recipe, **settings)
    result = whole.run()
    expected = state_of(whole)
    for stop in (4, 5, 11) if how == "plain" else (7,):
        output = tmp_path / str(stop)
        first = small.trainer(recipe, output=output, **settings)
        first.stop = lambda first=first, stop=stop: first.number >= stop
        assert not first.run().finished and first.number == stop
        second = small.trainer(recipe, output=output, **settings)
        path = checkpoints.newest(output)
        assert path is not None
        second.resume(checkpoints.load(path), path)
        again = second.run()
        assert again.finished
        assert_equal(state_of(second), expected)
        assert replace(again.evaluations[-1], seconds=0) == replace(
            result.evaluations[-1], seconds=0
        )


def test_a_run_repeats() -> None:
    """Twice the same; another seed, another run."""
    one, two, other = (small.trainer(small.recipe(seed=seed)) for seed in (0, 0, 1))
    for trainer in (one, two, other):
        trainer.run()
    assert_equal(state_of(one), state_of(two))
    with pytest.raises(AssertionError):
        assert_equal(state_of(one), state_of(other))


def test_what_a_checkpoint_must_fit(tmp_path: Path) -> None:
    first = small.trainer(small.recipe(epochs=1.0), output=tmp_path)
    first.run()
    path = checkpoints.newest(tmp_path)
    assert path is not None
    state = checkpoints.load(path)
    for values, word in (({"model": "b0"}, "--model small"), ({"seed": 5}, "--seed 0")):
        with pytest.raises(RecipeError, match=f"{path.name}.*{word}"):
            small.trainer(small.recipe(**values)).resume(state, path)
    with pytest.raises(RecipeError, match="training images 40"):
        small.trainer(small.recipe(), source=small.Stripes(50)).resume(state, path)
    state["network"].pop("classifier.weight")
    with pytest.raises(RecipeError, match="does not fit"):
        small.trainer(small.recipe()).resume(state, path)


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    """Stops, keeps the checkpoint of before, and says what to try."""
    recipe = small.recipe(save_steps=2)
    trainer = small.trainer(recipe, output=tmp_path)
    learner, broken = trainer.learner, torch.tensor(math.nan, requires_grad=True)
    plain = learner.loss
    learner.loss = lambda batch: plain(batch) * (broken if trainer.number >= 5 else 1.0)
    with pytest.raises(RecipeError, match="no number.*checkpoint-000000004.*--lr"):
        trainer.run()
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    kept = checkpoints.load(newest)
    assert kept["step"] == 4 and all(t.isfinite().all() for t in kept["network"].values())


def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    trainer = small.trainer(small.recipe(), output=tmp_path)
    with torch.no_grad():
        trainer.learner.model.classifier.weight[0, 0] = math.inf
    with pytest.raises(RecipeError, match="no number"):
        trainer.save()
    assert checkpoints.newest(tmp_path) is None


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_16_bits(amp: str) -> None:
    trainer = small.trainer(small.recipe(amp=amp, epochs=1.0), prepare=ek.patch)
    result = trainer.run()
    assert result.finished and all(p.isfinite().all() for p in trainer.learner.model.parameters())
    assert trainer.learner.scaler.is_enabled() == (amp == "fp16")


def test_patched_or_not() -> None:
    """The same start, images and random numbers: the weights after twelve steps differ by rounding
    alone, which training lets grow."""
    trained = []
    for prepare in (ek.patch, None):
        trainer = small.trainer(small.recipe(lr=0.005), prepare=prepare)
        before = state_of(trainer)
        result = trainer.run()
        trained.append((state_of(trainer), result))
    (ours, one), (theirs, other) = trained
    assert_moved_alike(ours, theirs, before, 0.05)
    assert one.evaluations[-1].loss == pytest.approx(other.evaluations[-1].loss, rel=0.02)


def test_it_ends_on_time(tmp_path: Path) -> None:
    trainer = small.trainer(small.recipe(wall_minutes=1e-9), output=tmp_path)
    result = trainer.run()
    assert not result.finished and result.steps == 1 and checkpoints.newest(tmp_path)


@pytest.mark.parametrize("how", ["fp16", "adamw", "sgd", "grown", "random", "clip"])
def test_resumes_bit_for_bit_with(tmp_path: Path, how: str) -> None:
    values: dict = {
        "fp16": {"amp": "fp16"},
        "adamw": {"optimizer": "adamw", "lr": 0.01},
        "sgd": {"optimizer": "sgd"},
        "clip": {"clip": 0.1},
    }.get(how, {})
    of = small.schedule()
    if how == "grown":
        of = of.with_larger_batches()
    if how == "random":
        of = preset("s", epochs=3.0, min_size=32, max_size=48, random_resize=0.7)
    recipe = small.recipe(device_batch=32, save_steps=1, **values)

    def make(output: Path | None = None) -> Trainer:
        trainer = small.trainer(recipe, of=of, output=output)
        trainer.learner.scaler.set_growth_interval(3)  # so that its scale changes
        return trainer

    whole, first, second = make(), make(tmp_path), make()
    whole.run()
    first.stop = lambda: first.number >= 5
    assert not first.run().finished
    path = checkpoints.newest(tmp_path)
    assert path is not None
    second.resume(checkpoints.load(path), path)
    assert second.run().finished
    assert_equal(state_of(second), state_of(whole))
    assert second.learner.scaler.state_dict() == whole.learner.scaler.state_dict()


def test_options_of_this_run_hold(tmp_path: Path) -> None:
    """A resumed run has its own weight decay and its own batch, and ends where the data do."""
    first = small.trainer(small.recipe(save_steps=5), output=tmp_path)
    first.stop = lambda: first.number >= 5
    first.run()
    path = checkpoints.newest(tmp_path)
    assert path is not None
    second = small.trainer(small.recipe(batch=4, device_batch=4, weight_decay=0.5))
    second.resume(checkpoints.load(path), path)
    assert [g["weight_decay"] for g in second.learner.optimizer.param_groups] == [0.5, 0.0]
    result = second.run()
    assert result.finished and result.steps == 5 + (120 - 40) // 4 and result.evaluations


def test_killed_in_its_last_evaluation(tmp_path: Path) -> None:
    trainer = small.trainer(small.recipe(epochs=1.0), output=tmp_path)
    trainer._evaluate = _killed
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    again = small.trainer(small.recipe(epochs=1.0))
    path = checkpoints.newest(tmp_path)
    assert path is not None
    again.resume(checkpoints.load(path), path)
    result = again.run()
    assert result.finished and len(result.evaluations) == 1


def _killed(_: object) -> None:
    raise KeyboardInterrupt
