"""The mapping of names, files, and what a wrong file says."""

from __future__ import annotations

import pickle

import pytest
import torch

import python_ref
from python_ref import StateDictError, weights

timm = pytest.importorskip("timm", reason="timm's state dicts are mapped")
torchvision = pytest.importorskip("torchvision", reason="torchvision's state dicts are mapped")

V1 = [f"b{i}" for i in range(8)]
TIMM = [f"efficientnetv2_{v}" for v in ("s", "m", "l", "xl")]
TIMM += [f"tf_efficientnetv2_{v}" for v in ("b0", "b1", "b2", "b3", "s", "m", "l", "xl")]
TIMM += [f"{prefix}efficientnet_{v}" for prefix in ("", "tf_") for v in V1]
TORCHVISION = [f"efficientnet_v2_{v}" for v in ("s", "m", "l")] + [f"efficientnet_{v}" for v in V1]


def shapes(state):
    return {key: (tuple(t.shape), t.dtype) for key, t in state.items()}


@pytest.mark.parametrize("name", TIMM)
def test_export_is_timms_state_dict(name):
    with torch.device("meta"):
        peer = timm.create_model(name)
        ours = python_ref.create(name.removeprefix("tf_"))
    assert shapes(weights.to_timm(ours)) == shapes(peer.state_dict())
    assert shapes(weights.from_timm(ours, peer.state_dict())) == shapes(ours.state_dict())


@pytest.mark.parametrize("name", TORCHVISION)
def test_export_is_torchvisions_state_dict(name):
    with torch.device("meta"):
        peer = torchvision.models.get_model(name)
        ours = python_ref.create(name)
    assert shapes(weights.to_torchvision(ours)) == shapes(peer.state_dict())
    assert shapes(weights.from_torchvision(ours, peer.state_dict())) == shapes(ours.state_dict())


@pytest.fixture
def model(randomise):
    return randomise(python_ref.create("b0", num_classes=9))


@pytest.fixture
def empty():
    return python_ref.create("b0", num_classes=9)


def assert_equal(ours, theirs):
    theirs = theirs.state_dict()
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs[key]), key


EXPORTS = {
    "timm": weights.to_timm,
    "torchvision": weights.to_torchvision,
    "python_ref": lambda model: model.state_dict(),
}


@pytest.mark.parametrize("family", EXPORTS)
@pytest.mark.parametrize("source", ["dict", "pth", "safetensors"])
def test_round_trip(family, source, model, empty, tmp_path):
    state = EXPORTS[family](model)
    assert weights.detect(state) == family
    if source == "pth":
        torch.save(state, tmp_path / "weights.pth")
        state = tmp_path / "weights.pth"
    elif source == "safetensors":
        save_file = pytest.importorskip(
            "safetensors.torch", reason="safetensors is an optional dependency"
        ).save_file
        save_file(state, tmp_path / "weights.safetensors")
        state = str(tmp_path / "weights.safetensors")
    weights.load(empty, state)
    assert_equal(empty, model)


def test_values_survive_timms_own_loader(model):
    peer = timm.create_model("tf_efficientnetv2_b0", num_classes=9)
    peer.load_state_dict(weights.to_timm(model))
    back = weights.from_timm(model, peer.state_dict())
    assert all(torch.equal(back[key], t) for key, t in model.state_dict().items())


def test_load_keeps_dtype_and_copies(model, empty):
    empty.double()
    state = model.state_dict()
    weights.load(empty, state)
    assert empty.stem.conv.weight.dtype == torch.float64
    state["stem.conv.weight"].zero_()
    assert empty.stem.conv.weight.any()


def test_a_wrong_file_is_one_error_that_names_the_keys(empty, tmp_path):
    with torch.device("meta"):
        other = timm.create_model("tf_efficientnetv2_s", num_classes=9)
    before = {key: t.clone() for key, t in empty.state_dict().items()}
    with pytest.raises(StateDictError) as caught:
        weights.load(empty, other.state_dict())
    error = caught.value
    assert "efficientnetv2_b0" in str(error) and "timm" in str(error)
    assert "blocks.0.1.conv.weight" in error.unexpected
    assert "blocks.0.1.conv.weight" in str(error)
    assert error.mismatched["conv_stem.weight"] == ((24, 3, 3, 3), (32, 3, 3, 3))
    assert all(torch.equal(t, before[key]) for key, t in empty.state_dict().items())


@pytest.mark.parametrize("family", EXPORTS)
def test_missing_and_unexpected_keys_are_named_as_in_the_file(family, model, empty):
    state = dict(EXPORTS[family](model))
    gone = sorted(key for key in state if key.endswith("running_var"))[:2]
    for key in gone:
        del state[key]
    state["ema.decay"] = torch.zeros(())
    with pytest.raises(StateDictError) as caught:
        weights.load(empty, state)
    assert caught.value.missing == gone
    assert caught.value.unexpected == ["ema.decay"]
    for key in [*gone, "ema.decay"]:
        assert key in str(caught.value)


def test_a_file_of_something_else(empty, tmp_path):
    resnet = torchvision.models.resnet18().state_dict()
    torch.save(resnet, tmp_path / "resnet.pth")
    with pytest.raises(StateDictError, match=r"missing.*unexpected.*layer1"):
        weights.load(empty, tmp_path / "resnet.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds a list"):
        weights.load(empty, tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError):
        weights.load(empty, tmp_path / "absent.pth")


def test_a_file_cannot_run_code(empty, tmp_path):
    torch.save({"conv_stem.weight": print}, tmp_path / "code.pth")
    with pytest.raises(pickle.UnpicklingError):
        weights.load(empty, tmp_path / "code.pth")


def test_classifier_of_another_size(model):
    other = python_ref.create("b0", num_classes=10)
    with pytest.raises(StateDictError, match=r"classifier\.weight \(9, 1280\) for \(10, 1280\)"):
        weights.load(other, weights.to_timm(model))


@pytest.mark.parametrize("family", EXPORTS)
def test_a_backbone_ignores_the_classifier(family, model):
    backbone = python_ref.create("b0", num_classes=0, out_indices=(4,))
    weights.load(backbone, EXPORTS[family](model))
    assert_equal(backbone, model)


def test_counters_may_be_absent(model, empty):
    state = {k: t for k, t in weights.to_timm(model).items() if "num_batches" not in k}
    weights.load(empty, state)
    assert empty.stem.bn.num_batches_tracked == 0
    assert torch.equal(empty.stem.bn.running_var, model.stem.bn.running_var)


def test_placements(randomise):
    placed = randomise(
        python_ref.create("b0", placement=python_ref.Placement((1, 4), squeeze_excite=True))
    )
    state = weights.to_timm(placed)
    assert "blocks.3.0.conv_exp.weight" in state and "blocks.3.0.se.conv_reduce.bias" in state
    with pytest.raises(ValueError, match="no squeeze-and-excite"):
        weights.to_torchvision(placed)
