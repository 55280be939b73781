"""create(), the official initialisation, feature maps, the classifier, checkpointing, float64."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

import python_ref
from python_ref import ConvBNAct, EfficientNet, weights
from python_ref.variants import find


def test_create_passes_every_choice_on():
    model = python_ref.create(
        "b0", num_classes=11, in_chans=5, bn_eps=2e-5, bn_momentum=0.03, dropout=0.7
    )
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(n.eps, n.momentum) for n in norms} == {(2e-5, 0.03)}
    assert model.dropout.p == 0.7
    assert model.eval()(torch.randn(2, 5, 40, 33)).shape == (2, 11)


def test_defaults_are_the_papers():
    with torch.device("meta"):
        rates = {v: python_ref.create(v).dropout.p for v in ("b2", "s", "m", "l", "v1_b7")}
        model = python_ref.create("s")
    assert rates == {"b2": 0.3, "s": 0.2, "m": 0.3, "l": 0.4, "v1_b7": 0.5}
    assert (model.stem.bn.eps, model.stem.bn.momentum) == (1e-3, 0.1)
    assert model.stages[-1][-1].drop_path.rate == pytest.approx(0.2 * 39 / 40)
    assert [name for name, _ in model.named_children()] == [
        "stem",
        "stages",
        "head",
        "pool",
        "dropout",
        "classifier",
    ]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_classes": -1},
        {"in_chans": 0},
        {"padding": "valid"},
        {"drop_path": 1.0},
        {"dropout": 1.5},
        {"out_indices": ()},
        {"out_indices": (5,)},
    ],
)
def test_impossible_values(kwargs):
    with torch.device("meta"), pytest.raises(ValueError):
        python_ref.create("b0", **kwargs)


@pytest.mark.parametrize("name", ["b0", "v1_b0"])
def test_official_initialisation(name):
    model = python_ref.create(name, num_classes=100)
    depthwise = 0
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().double()
            k = module.kernel_size[0]
            is_depthwise = module.groups == module.in_channels > 1
            depthwise += is_depthwise
            fan_out = k * k * (1 if is_depthwise else module.out_channels)
            std = math.sqrt(2.0 / fan_out)
            # Five standard deviations of the estimates over n normal values.
            n = weight.numel()
            assert abs(weight.std() / std - 1) < 5 / math.sqrt(2 * n), path
            assert abs(weight.mean()) < 5 * std / math.sqrt(n), path
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()
    assert depthwise == 16
    fc = model.classifier.weight.detach()
    assert fc.abs().max() <= 0.1 and fc.abs().max() > 0.0999
    assert abs(fc.std() - 0.1 / math.sqrt(3)) < 1e-3
    assert not model.classifier.bias.any()


def test_forward_is_features_then_head():
    model = python_ref.create("b0").eval()
    x = torch.randn(2, 3, 64, 70)
    features = model.forward_features(x)
    assert features.shape == (2, 1280, 2, 3)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    assert torch.equal(model.forward_head(features), model(x))
    assert torch.equal(model.classifier(pooled), model(x))


def test_reset_classifier():
    model = python_ref.create("b0").double().eval()
    model.reset_classifier(6)
    x = torch.randn(2, 3, 33, 33, dtype=torch.float64)
    assert model(x).shape == (2, 6) and model.num_classes == 6
    assert model.classifier.weight.dtype == torch.float64
    assert model.classifier.weight.abs().max() <= 1 / math.sqrt(6)
    model.reset_classifier(0)
    assert isinstance(model.classifier, nn.Identity)
    torch.testing.assert_close(model(x), model.forward_features(x).mean((2, 3)))
    with pytest.raises(ValueError, match="num_classes"):
        model.reset_classifier(-1)


@pytest.mark.parametrize("indices", [(0, 1, 2, 3, 4), (1, 3), (-1,), (3, 0)])
@torch.no_grad()
def test_feature_maps_are_timms(indices, randomise, relative_error):
    timm = pytest.importorskip("timm", reason="timm's feature maps are the reference")
    name = "tf_efficientnetv2_b0"
    full = randomise(timm.create_model(name).double())
    wanted = sorted(i % 5 for i in indices)  # timm's wrapper knows neither order nor negatives
    peer = timm.create_model(name, features_only=True, out_indices=wanted).double().eval()
    peer.load_state_dict(full.state_dict(), strict=False)
    ours = python_ref.create("b0", padding="same", out_indices=indices).double().eval()
    weights.load(ours, full.state_dict())
    x = torch.randn(2, 3, 65, 64, dtype=torch.float64)
    maps = ours(x)
    assert isinstance(maps, list) and len(maps) == len(indices)
    theirs = dict(zip(wanted, peer(x), strict=True))
    for index, got in zip(indices, maps, strict=True):
        info = ours.feature_info[index]
        assert got.shape[1] == info.channels
        assert got.shape[2:] == (-(-65 // info.reduction), 64 // info.reduction)
        assert relative_error(got, theirs[index % 5]) < 1e-9


def test_feature_info():
    with torch.device("meta"):
        infos = python_ref.create("m").feature_info
    assert [(i.index, i.stage, i.channels, i.reduction) for i in infos] == [
        (0, 1, 24, 2),
        (1, 2, 48, 4),
        (2, 3, 80, 8),
        (3, 5, 176, 16),
        (4, 7, 512, 32),
    ]


def test_features_stop_at_the_last_stage_needed():
    model = python_ref.create("b0", out_indices=(0, 1)).eval()
    ran = []
    for number, stage in enumerate(model.stages, 1):
        stage.register_forward_hook(lambda *_, number=number: ran.append(number))
    model(torch.randn(1, 3, 32, 32))
    assert ran == [1, 2]


@pytest.mark.parametrize("out_indices", [None, (1, 4)])
def test_checkpointing_changes_nothing_but_the_work(out_indices):
    model = python_ref.create("b0", num_classes=5, dropout=0.0, out_indices=out_indices).double()
    model.train()
    model.stages[3].eval()  # frozen statistics inside a training model
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    calls = []
    twin.stages[4][1].register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.randn(4, 3, 64, 33, dtype=torch.float64)
    outputs = []
    for net in (model, twin):
        torch.manual_seed(3)  # the same samples lose the same branches
        out = net(x)
        out = out if out_indices is None else torch.cat([o.flatten() for o in out])
        out.square().sum().backward()
        outputs.append(out)
    assert torch.equal(*outputs)
    assert len(calls) == 2, "the block was not computed again"
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-12, atol=1e-12)
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    # The frozen stage's counters stand still, the others count the one batch.
    assert [stage[0].project.bn.num_batches_tracked for stage in twin.stages[1:5]] == [1, 1, 0, 1]

    twin.set_grad_checkpointing(False)
    twin(x)
    assert len(calls) == 3


def test_compiled_checkpointing_counts_a_batch_once():
    whole = find("b0")
    small = dataclasses.replace(whole, stages=whole.stages[:2], head=16)
    model = EfficientNet(small, num_classes=5, drop_path=0.0, dropout=0.0).double().train()
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    model(x).square().sum().backward()
    torch.compile(twin, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, msg=name)
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(theirs, ours, msg=name)


def test_checkpointing_does_nothing_without_gradients():
    model = python_ref.create("b0").eval()
    x = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        want = model(x)
        model.set_grad_checkpointing()
        assert torch.equal(model(x), want)


@pytest.mark.parametrize("name", ["b0", "v1_b0"])
def test_float64_throughout(name):
    model = python_ref.create(name, padding="same").double().train()
    outputs = []
    for module in model.modules():
        module.register_forward_hook(lambda _m, _i, out: outputs.append(out.dtype))
    model(torch.randn(2, 3, 64, 64, dtype=torch.float64)).sum().backward()
    assert set(outputs) == {torch.float64}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float64}


def test_conv_bn_act_order():
    unit = ConvBNAct(3, 4, 3, 2)
    assert [name for name, _ in unit.named_children()] == ["conv", "bn", "act"]
    assert unit.conv.bias is None and unit.act.inplace
