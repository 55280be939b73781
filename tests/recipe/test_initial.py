"""Weights to begin with: whose are read, what is said of the others."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch

import python_ref
from python_ref import weights
from python_ref.recipe.errors import RecipeError
from python_ref.recipe.initial import load_initial


def network(classes=10, name="b0"):
    """Every call with other numbers in every tensor."""
    return scatter(python_ref.create(name, num_classes=classes))


@torch.no_grad()
def scatter(model):
    for tensor in model.state_dict().values():
        tensor.copy_(1000 * torch.rand(tensor.shape))
    return model


def same(model, other, *, but=()):
    return all(
        torch.equal(tensor, other.state_dict()[key])
        for key, tensor in model.state_dict().items()
        if not key.startswith(but) and not key.endswith("num_batches_tracked")
    )


FORMS = {
    "plain": lambda m: m.state_dict(),
    "timm": weights.to_timm,
    "torchvision": lambda m: weights.to_torchvision(m),
    "parallel": lambda m: {f"module.{k}": t for k, t in m.state_dict().items()},
    "compiled": lambda m: {f"_orig_mod.{k}": t for k, t in m.state_dict().items()},
    "nested": lambda m: {"state_dict": m.state_dict(), "epoch": 3, "args": Namespace(lr=0.1)},
    "averaged": lambda m: {
        "model": network().state_dict(),
        "model_ema": {"n_averaged": torch.tensor(3)}
        | {f"module.{k}": t for k, t in m.state_dict().items()},
    },
    "checkpoint": lambda m: {
        "format": 1,
        "step": 5,
        "network": network().state_dict(),
        "average": {
            k: t for k, t in m.state_dict().items() if not k.endswith("num_batches_tracked")
        },
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_any_form(form, tmp_path):
    source, model = network(), network()
    assert not same(model, source)
    torch.save(FORMS[form](source), tmp_path / "w.pth")
    told = load_initial(model, tmp_path / "w.pth", 10, reset_classifier=False)
    assert same(model, source)
    assert told == f"weights of {tmp_path / 'w.pth'}"


def test_safetensors(tmp_path):
    files = pytest.importorskip("safetensors.torch", reason="safetensors is an extra")
    source, model = network(), network()
    files.save_file(weights.to_timm(source), tmp_path / "w.safetensors")
    load_initial(model, str(tmp_path / "w.safetensors"), 10, reset_classifier=False)
    assert same(model, source)


@pytest.mark.parametrize("form", ["plain", "timm", "torchvision"])
def test_a_classifier_for_other_classes_stays_new(form, tmp_path):
    source, model = network(1000), network(10)
    torch.save(FORMS[form](source), tmp_path / "w.pth")
    classifier = model.classifier.weight.clone()
    told = load_initial(model, tmp_path / "w.pth", 10, reset_classifier=True)
    assert same(model, source, but=("classifier",))
    assert torch.equal(model.classifier.weight, classifier)
    assert told.endswith("with a new classifier for 10 classes")


def test_a_classifier_for_as_many_classes_is_taken(tmp_path):
    source, model = network(), network()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    told = load_initial(model, tmp_path / "w.pth", 10, reset_classifier=True)
    assert same(model, source) and "new classifier" not in told


def test_a_file_without_a_classifier(tmp_path):
    source, model = network(0), network()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_initial(model, tmp_path / "w.pth", 10, reset_classifier=True)
    assert same(source, model)
    with pytest.raises(RecipeError, match="it lacks classifier.bias, classifier.weight"):
        load_initial(model, tmp_path / "w.pth", 10, reset_classifier=False)


def test_other_classes_without_leave_to_reset(tmp_path):
    torch.save(network(1000).state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        RecipeError, match="w.pth has 1000 classes, the data 10: --finetune replaces the classifier"
    ):
        load_initial(network(), tmp_path / "w.pth", 10, reset_classifier=False)


@pytest.mark.parametrize("reset", [False, True])
def test_another_variant(reset, tmp_path):
    torch.save(network(1000, "b2").state_dict(), tmp_path / "w.pth")
    with pytest.raises(RecipeError, match=r"another network: .*\(\d+,.* for \(\d+,.*; it has also"):
        load_initial(network(), tmp_path / "w.pth", 10, reset_classifier=reset)


def test_networks_of_other_libraries(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is an extra")
    source = scatter(timm.create_model("resnet18", num_classes=1000))
    model = timm.create_model("resnet18", num_classes=10)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    with pytest.raises(RecipeError, match="1000 classes"):
        load_initial(model, tmp_path / "w.pth", 10, reset_classifier=False)
    load_initial(model, tmp_path / "w.pth", 10, reset_classifier=True)
    assert same(model, source, but=("fc",))
    torch.save(network().state_dict(), tmp_path / "other.pth")
    with pytest.raises(RecipeError, match="another network: .*it lacks conv1.weight"):
        load_initial(model, tmp_path / "other.pth", 10, reset_classifier=True)


def test_a_missing_file(tmp_path):
    with pytest.raises(RecipeError, match="--init .*w.pth: there is no such file"):
        load_initial(network(), tmp_path / "w.pth", 10, reset_classifier=False)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_that_is_cut_off(ending, part, tmp_path):
    files = pytest.importorskip("safetensors.torch", reason="safetensors is an extra")
    path = tmp_path / f"w.{ending}"
    save = torch.save if ending == "pth" else files.save_file
    save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(RecipeError, match=f"w.{ending} cannot be read: cut off"):
        load_initial(network(), path, 10, reset_classifier=False)


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, {"model": {"lr": 0.1}}])
def test_a_file_without_weights(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(RecipeError, match="w.pth has no state dict"):
        load_initial(network(), tmp_path / "w.pth", 10, reset_classifier=False)


@pytest.mark.parametrize("content", [[1, 2], torch.nn.Linear(2, 2)])
def test_a_file_of_something_else(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(RecipeError, match="no file of weights"):
        load_initial(network(), tmp_path / "w.pth", 10, reset_classifier=False)
