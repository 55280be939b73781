"""Every EfficientNet-family model of timm and torchvision is either right or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import effv2_kernels as ek
import python_ref
from tests.support import (
    assert_as_close_over,
    draws,
    in_float64,
    randomise,
    relative_error,
    timm_family,
)

timm = pytest.importorskip("timm", reason="timm is an extra")
models = pytest.importorskip("torchvision.models", reason="torchvision is an extra")

TIMM_MODELS = timm_family()
TORCHVISION_MODELS = ("efficientnet_b0", "efficientnet_b3", "efficientnet_b5", "efficientnet_v2_s")


def check(model: nn.Module, x: torch.Tensor) -> ek.PatchReport:
    """Patched outputs are the unpatched ones: exactly the same function in float64, and in float32
    as near to it as PyTorch is."""
    double = copy.deepcopy(model).double()
    ek.patch(double)
    with torch.no_grad():
        assert relative_error(double(x.double()), in_float64(model, x)) < 1e-9
    reports: list[ek.PatchReport] = []
    assert_as_close_over(draws(model, x, lambda drawn: reports.append(ek.patch(drawn))))
    return reports[0]


# Many, for the error of a few numbers is a throw of dice, for PyTorch as for us.
CLASSES = 100


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_timm(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES)
    size = model.default_cfg["input_size"][-1] if model.default_cfg.get("fixed_input_size") else 48
    model = randomise(model, size=size) if _has_batch_norm(model) else model
    report = check(model.eval(), torch.randn(2, 3, size, size))
    modules = dict(model.named_modules())
    listed = {entry.name for entry in (*report.patched, *report.skipped)}
    assert listed <= set(modules)
    assert all(entry.reason for entry in report.skipped)


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("name", TORCHVISION_MODELS)
def test_torchvision(name):
    model = randomise(getattr(models, name)(num_classes=CLASSES)).eval()
    report = check(model, torch.randn(1, 3, 65, 50))
    assert report.coverage > 0.99 and not report.skipped


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("name", ["b0", "b3", "s", "efficientnet_b1"])
def test_python_ref(name, padding):
    import python_ref

    model = randomise(python_ref.create(name, num_classes=CLASSES, padding=padding)).eval()
    for size in ((48, 65), (65, 50)):
        ek.unpatch(model)
        report = check(model, torch.randn(1, 3, *size))
        assert report.coverage > 0.99 and not report.skipped


# Hazards of reference section 2.6: (model, arguments, blocks that must be refused, their reason).
REFUSED = {
    "global context": ("gc_efficientnetv2_rw_t", {}, "GlobalContext"),
    "group norm": ("efficientnet_b0_gn", {}, "GroupNormAct"),
    "conditional convolution": ("efficientnet_cc_b0_4e", {}, "CondConvResidual"),
    "mixed kernels": ("mixnet_s", {}, "MixedConv2d"),
    "dilation": ("efficientnet_b0", {"output_stride": 16}, "dilated"),
    "dilation, V2": ("efficientnetv2_rw_t", {"output_stride": 8}, "dilated"),
    "anti-aliasing": ("efficientnet_blur_b0", {}, "anti-aliasing"),
    "space to depth": ("efficientnet_x_b3", {}, "space-to-depth"),
    "grouped": ("efficientnet_b0_g16_evos", {}, "groups"),
    "other attention": ("efficientnet_b0", {"se_layer": "eca"}, "not plain squeeze-and-excite"),
    "features": ("efficientnet_b0", {"features_only": True}, "features_only"),
    "universal blocks": ("mobilenetv4_conv_small", {}, "UniversalInvertedResidual"),
    "layer norm": ("test_efficientnet_ln", {}, "LayerNorm"),
    "evo norm": ("test_efficientnet_evos", {}, "EvoNorm"),
}


@pytest.mark.parametrize("hazard", REFUSED)
def test_a_hazard_is_refused_with_its_reason(hazard):
    name, arguments, word = REFUSED[hazard]
    report = ek.patch(timm.create_model(name, **arguments))
    assert any(word in entry.reason for entry in report.skipped), report


@pytest.mark.parametrize("name", ["efficientnet_b1_pruned", "efficientnet_es_pruned"])
def test_pruned_channel_counts_are_right(name):
    model = randomise(timm.create_model(name)).eval()
    assert not check(model, torch.randn(1, 3, 50, 50)).skipped


@pytest.mark.parametrize("location", ["bottleneck", "expansion"])
def test_features_only(location):
    """The "expansion" features come from hooks on inner modules: those blocks are refused."""
    model = timm.create_model(
        "tf_efficientnetv2_b0", features_only=True, feature_location=location, out_indices=(1, 3, 4)
    )
    randomise(model).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        eager = model(x)
        report = ek.patch(model)
        for found, expected in zip(model(x), eager, strict=True):
            assert relative_error(found, expected) < 1e-4
    hooked = [entry.name for entry in report.skipped if "hook" in entry.reason]
    assert bool(hooked) == (location == "expansion")
    assert report.patched


@pytest.mark.parametrize("change", ["output_stride", "se_layer", "act", "drop_path", "no classes"])
def test_constructor_arguments(change):
    arguments = {
        "output_stride": {"output_stride": 16},
        "se_layer": {"se_layer": "se"},
        "act": {"act_layer": nn.ReLU},
        "drop_path": {"drop_path_rate": 0.3, "drop_rate": 0.2},
        "no classes": {"num_classes": 0, "global_pool": ""},
    }[change]
    model = timm.create_model("tf_efficientnetv2_b0", **arguments)
    check(randomise(model).eval(), torch.randn(1, 3, 47, 64))


def test_frozen_and_synchronised_norms_are_refused():
    layers = pytest.importorskip("timm.layers")
    for convert in (layers.convert_sync_batchnorm, layers.freeze_batch_norm_2d):
        model = convert(timm.create_model("tf_efficientnetv2_b0")).eval()
        report = ek.patch(model)
        assert not report.patched
        assert all("norm" in entry.reason for entry in report.skipped)


def test_norms_without_running_statistics_are_refused():
    model = models.efficientnet_b0(
        norm_layer=lambda c: nn.BatchNorm2d(c, track_running_stats=False)
    ).eval()
    report = ek.patch(model)
    assert not report.patched
    assert all("track_running_stats" in entry.reason for entry in report.skipped)


def _spectral(model: nn.Module) -> None:
    nn.utils.parametrizations.spectral_norm(model.blocks[1][0].conv_exp)


def _prune(model: nn.Module) -> None:
    from torch.nn.utils import prune

    prune.random_unstructured(model.blocks[1][0].conv_exp, "weight", 0.5)


def _lora(model: nn.Module) -> None:
    class LowRank(nn.Module):
        def __init__(self, base: nn.Conv2d):
            super().__init__()
            self.base = base

        def forward(self, x):
            return self.base(x) * 1.5

    model.blocks[1][0].conv_exp = LowRank(model.blocks[1][0].conv_exp)


def _own_forward(model: nn.Module) -> None:
    block = model.blocks[1][0]
    block.forward = lambda x: type(block).forward(block, x) * 2


def _other_act(model: nn.Module) -> None:
    model.blocks[1][0].bn1.act = nn.Tanh()


def _inner_forward(model: nn.Module) -> None:
    conv = model.blocks[1][0].conv_exp
    conv.forward = lambda x: type(conv).forward(conv, x) * 2


def _dilate(model: nn.Module) -> None:
    conv = model.blocks[3][1].conv_dw
    conv.dilation = conv.padding = (2, 2)


def _hook(model: nn.Module) -> None:
    model.blocks[1][0].bn1.register_forward_hook(lambda m, a, out: out * 2)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "alter",
    [_spectral, _prune, _lora, _own_forward, _inner_forward, _dilate, _other_act, _hook],
)
def test_altered_insides(alter, when):
    """Altered before the patch: refused. Altered after it: the original forward takes over."""
    model = randomise(timm.create_model("tf_efficientnetv2_b0", num_classes=7)).eval()
    x = torch.randn(1, 3, 48, 48)
    altered = copy.deepcopy(model)
    torch.manual_seed(3)
    alter(altered)
    with torch.no_grad():
        if when == "after":
            ek.patch(model)
            model(x), model(x)
            torch.manual_seed(3)
            alter(model)
        else:
            torch.manual_seed(3)
            alter(model)
            report = ek.patch(model)
            expected = "blocks.3.1" if alter is _dilate else "blocks.1.0"
            assert [entry.name for entry in report.skipped] == [expected]
        assert relative_error(model(x), altered(x)) < 1e-4


class Triple(nn.Module):
    def forward(self, x):
        return 3 * x


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("drop_path", lambda: timm.create_model("tf_efficientnetv2_b0")),
        ("drop_path", lambda: python_ref.create("b0")),
        ("stochastic_depth", models.efficientnet_b0),
    ],
)
def test_another_drop_path_is_refused(name, build):
    model = randomise(build()).double().eval()  # it amplifies rounding
    for module in [m for m in model.modules() if hasattr(m, name)]:
        setattr(module, name, Triple())
    report = ek.patch(model)
    plain = copy.deepcopy(model)
    ek.unpatch(plain)
    assert any("drop path is a Triple" in entry.reason for entry in report.skipped)
    x = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(model(x), plain(x)) < 1e-9


def test_a_class_whose_forward_was_replaced_is_refused(monkeypatch):
    kind = timm.models._efficientnet_blocks.SqueezeExcite
    honest = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: honest(self, x) * 2)
    model = randomise(timm.create_model("tf_efficientnetv2_b0")).eval()
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        expected = model(x)
        report = ek.patch(model)
        assert {entry.reason for entry in report.skipped} == {
            "the forward of SqueezeExcite was replaced, for the class"
        }
        assert relative_error(model(x), expected) < 1e-4


@pytest.mark.parametrize("change", ["dropout", "pool"])
def test_what_lies_between_head_and_classifier(change):
    if change == "dropout":
        model = python_ref.create("b0")
        model.dropout = nn.LayerNorm(1280)
    else:
        model = models.efficientnet_b0(num_classes=10)
        model.classifier = nn.Identity()
    randomise(model).eval()
    ek.patch(model)
    if change == "pool":
        model.avgpool.output_size = 2
    plain = copy.deepcopy(model)
    ek.unpatch(plain)
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        assert relative_error(model(x), plain(x)) < 1e-4


def test_another_approximation_of_gelu():
    """An attribute of an activation, which no replaced module gives away."""
    model = randomise(python_ref.create("b0"))
    for module in model.modules():
        for name, child in module._modules.items():
            if type(child) is nn.SiLU:
                module._modules[name] = nn.GELU()
    model.eval()
    assert not ek.patch(model).skipped
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        model(x)
        for module in model.modules():
            if type(module) is nn.GELU:
                module.approximate = "tanh"
        plain = copy.deepcopy(model)
        ek.unpatch(plain)
        assert relative_error(model(x), plain(x)) < 1e-5


@pytest.mark.parametrize("target", ["conv_head", "bn2", "global_pool", "conv_stem", "bn1"])
def test_hooks_on_the_ends_run(target):
    model = randomise(timm.create_model("tf_efficientnetv2_b0")).eval()
    ek.patch(model)
    seen = []
    handle = model.get_submodule(target).register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        hooked = model(x)
        handle.remove()
        assert seen and relative_error(model(x), hooked) < 1e-4
    assert len(seen) == 1


@pytest.mark.parametrize("target", ["features", "features.8", "features.8.0", "avgpool"])
def test_hooks_on_torchvisions_ends_run(target):
    model = randomise(models.efficientnet_b0()).eval()
    ek.patch(model)
    seen = []
    handle = model.get_submodule(target).register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        model(torch.randn(1, 3, 48, 48))
        handle.remove()
        model(torch.randn(1, 3, 48, 48))
    assert len(seen) == 1


def test_forward_features_and_head():
    import python_ref

    x = torch.randn(1, 3, 48, 65)
    for model in (timm.create_model("efficientnetv2_rw_t"), python_ref.create("b0")):
        randomise(model).eval()
        with torch.no_grad():
            expected, logits = model.forward_features(x), model(x)
            ek.patch(model)
            found = model.forward_features(x)
            assert relative_error(found, expected) < 1e-4
            assert relative_error(model.forward_head(found), logits) < 1e-4


def test_a_new_classifier_and_new_pooling_after_the_patch():
    model = randomise(timm.create_model("tf_efficientnetv2_b0")).eval()
    ek.patch(model)
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        model(x)
        model.reset_classifier(5, "max")
        plain = copy.deepcopy(model)
        ek.unpatch(plain)
        assert relative_error(model(x), plain(x)) < 1e-4


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["forward_head", "forward_features", "_forward_impl"])
def test_methods_replaced_on_the_model_are_called(method, when):
    library = models.efficientnet_b0 if method == "_forward_impl" else timm.create_model
    model = library() if method == "_forward_impl" else library("tf_efficientnetv2_b0")
    randomise(model).eval()
    if when == "after":
        ek.patch(model)
    outputs = {"forward_features": torch.ones(1, 1280, 2, 2)}
    setattr(model, method, lambda x, *_: outputs.get(method, x.flatten(1)[:, :3]))
    if when == "before":
        ek.patch(model)
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        plain = copy.deepcopy(model)
        ek.unpatch(plain)
        setattr(plain, method, getattr(model, method))
        assert relative_error(model(x), plain(x)) < 1e-4


def test_global_hooks_run():
    from torch.nn.modules.module import register_module_forward_hook

    model = randomise(timm.create_model("tf_efficientnetv2_b0")).eval()
    x, calls = torch.randn(1, 3, 48, 48), []
    handle = register_module_forward_hook(lambda module, *_: calls.append(module))
    try:
        with torch.no_grad():
            model(x)
            plain = len(calls)
            ek.patch(model)
            calls.clear()
            model(x)
    finally:
        handle.remove()
    assert len(calls) == plain


def test_a_larger_average_pool_is_not_the_fused_one():
    model = randomise(timm.create_model("tf_efficientnetv2_b0", num_classes=0)).eval()
    model.global_pool = timm.layers.SelectAdaptivePool2d(2, pool_type="avg", flatten=True)
    check(model, torch.randn(1, 3, 64, 64))


def test_other_kernels_in_the_1x1_places_are_refused():
    blocks = timm.models._efficientnet_blocks
    for kernels in ({"exp_kernel_size": 3}, {"pw_kernel_size": 3}):
        block = blocks.InvertedResidual(8, 8, exp_ratio=4, **kernels).eval()
        report = ek.patch(block)
        assert [entry.name for entry in report.skipped] == [""]
        assert "1x1" in report.skipped[0].reason


def test_patching_calls_none_of_the_users_hooks():
    model = timm.create_model("tf_efficientnetv2_b0").eval()
    calls = []
    model.blocks[2].register_forward_hook(lambda *_: calls.append(1))
    assert ek.patch(model).coverage > 0.99
    assert not calls


def test_a_copied_block_does_not_take_the_model_along():
    import pickle

    model = timm.create_model("tf_efficientnetv2_b0").eval()
    alone = len(pickle.dumps(model.blocks[1][0]))
    ek.patch(model)
    assert len(pickle.dumps(model.blocks[1][0])) < alone + 20_000
