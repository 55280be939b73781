"""Learning rate, weight decay, the moving average, and dropout that a schedule changes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import python_ref
from python_ref.recipe import RecipeError
from python_ref.recipe.dropout import Dropout, take_over
from python_ref.recipe.optimisation import Average, make_optimizer, peak_rate, rate_factor
from python_ref.recipe.options import Recipe
from python_ref.recipe.paper import make_schedule, recipe_of
from tests.recipe import small
from tests.training.few_blocks import python_ref_network, timm_network


def test_the_papers_rate() -> None:
    recipe = Recipe(batch=4096)
    assert peak_rate(recipe) == pytest.approx(0.256)
    at = {e: rate_factor(recipe, e) for e in (0.0, 2.5, 5.0, 7.1, 7.2, 240.0)}
    assert at[0.0] == 0 and at[2.5] == 0.5
    assert at[5.0] == pytest.approx(0.97**2)  # counted from the start: two steps within five
    assert at[7.1] == pytest.approx(0.97**2) and at[7.2] == pytest.approx(0.97**3)
    assert at[240.0] == pytest.approx(0.97**100)


def test_the_other_presets_rates() -> None:
    recipe = recipe_of("finetune", init="x")
    assert peak_rate(recipe) == pytest.approx(0.001)
    assert rate_factor(recipe, 8.0) == pytest.approx(0.5)
    assert rate_factor(recipe, 15.0) == pytest.approx(0.0, abs=1e-12)
    official = recipe_of("finetune", init="x", preset="official")
    assert rate_factor(official, 14.0) == 1.0 and official.weight_decay == 1e-5
    assert recipe.weight_decay == 0 and recipe.batch == 512
    large = recipe_of("imagenet21k", lr=0.5)
    assert rate_factor(large, 60.0) == pytest.approx(0.0, abs=1e-12) and large.lr == 0.5
    stage = make_schedule(recipe, "s", 300, 384).stages
    assert [(s.size, s.regularisation.magnitude, s.epochs) for s in stage] == [(384, 0.0, 15.0)]
    official = recipe_of("imagenet21k", preset="official")
    assert [s.size for s in make_schedule(official, "l", 384, 480).stages] == [224]
    assert len(make_schedule(large, "s", 300, 384).stages) == 4


@pytest.mark.parametrize("name", ["rmsproptf", "sgd", "adamw"])
def test_only_weights_decay(name: str) -> None:
    model = python_ref_network()
    recipe = small.recipe(optimizer=name, weight_decay=0.5)
    optimizer = make_optimizer(model, recipe)
    decay = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for parameter_name, parameter in model.named_parameters():
        expected = 0.5 if parameter.ndim > 1 else 0.0
        assert decay[parameter] == expected, parameter_name
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    optimizer.step()


def test_the_average() -> None:
    """Against the definition, in float64."""
    model = python_ref_network().double()
    average = Average(model, 0.9)
    expected = {n: t.clone() for n, t in model.state_dict().items()}
    for updates in range(30):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor))
        average.update(updates)
        decay = min(0.9, (1 + updates) / (10 + updates))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
    assert set(average.tensors) == {n for n in expected if "num_batches" not in n}
    assert any("running_var" in n for n in average.tensors)
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12)


def test_the_average_in_place() -> None:
    model = python_ref_network()
    average = Average(model, 0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    average.update(5)
    before = copy.deepcopy(model.state_dict())
    with average.in_place():
        assert not torch.equal(model.classifier.weight, before["classifier.weight"])
        assert torch.equal(model.classifier.weight, average.tensors["classifier.weight"])
    after = model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_dropout_is_the_libraries() -> None:
    """What it keeps: as often as it should, scaled as it should."""
    torch.manual_seed(0)
    dropout = Dropout().train()
    x = torch.rand(200, 500) + 1
    assert torch.equal(dropout(x), x)
    for rate in (0.1, 0.5):
        dropout.set_rate(rate)
        found = dropout(x)
        kept = found != 0
        torch.testing.assert_close(found[kept], x[kept] / (1 - rate))
        assert 1 - kept.double().mean().item() == pytest.approx(rate, abs=5 / math.sqrt(x.numel()))
        assert torch.equal(dropout.eval()(x), x)
        dropout.train()


def _torchvision() -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="torchvision is an extra")
    return models.efficientnet_b0(num_classes=10)


@pytest.mark.parametrize("make", [python_ref_network, timm_network, _torchvision])
def test_taking_over(make) -> None:
    model = make().train()
    names = list(model.state_dict())
    dropout = take_over(model)
    assert dropout is not None and list(model.state_dict()) == names
    x = torch.randn(4, 3, 32, 32)

    def output(rate: float, seed: int) -> torch.Tensor:
        dropout.set_rate(rate)
        torch.manual_seed(seed)
        return model(x).detach()

    assert torch.equal(output(0.9, 1), output(0.9, 1))
    assert not torch.equal(output(0.9, 1), output(0.0, 1))
    model.eval()
    assert torch.equal(output(0.9, 1), output(0.0, 2))


def test_nothing_to_take_over() -> None:
    assert take_over(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    "values, word",
    [
        ({"epochs": 0.0}, "--epochs"),
        ({"batch": 0}, "--batch"),
        ({"ema": 1.5}, "--ema"),
        ({"grow_batch": 0.5}, "--grow-batch"),
        ({"finetune": True}, "--init"),
        ({"lr": -1.0}, "--lr"),
    ],
)
def test_options_refused(values, word) -> None:
    with pytest.raises(RecipeError, match=word):
        Recipe(**values)


def test_python_ref_has_the_place() -> None:
    assert take_over(python_ref.create("b0")) is not None
