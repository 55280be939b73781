"""The contract of ``patch``: what it may touch, what it must say, and the way back."""

from __future__ import annotations

import io
import random
from contextlib import redirect_stdout

import pytest
import torch
from torch import nn

import effv2_kernels as ek
from tests.conftest import LIBRARIES
from tests.support import (
    assert_as_close_as_pytorch,
    assert_as_close_over,
    draws,
    in_float64,
    randomise,
    relative_error,
)


def test_outputs_are_the_unpatched_models(small_model, image):
    reports = []
    # Folded weights first, weights packed by oneDNN from the second call on.
    drawn = list(draws(small_model, image, lambda m: reports.append(ek.patch(m)), calls=3))
    assert_as_close_over(drawn)
    found, _, reference = drawn[0]
    assert max(relative_error(one, reference) for one in found) <= 1e-5
    report = reports[0]
    assert report.patched and not report.skipped
    assert 0.95 < report.coverage <= 1.0


def test_state_dict_rng_and_modules_are_untouched(small_model):
    before = {k: v.clone() for k, v in small_model.state_dict().items()}
    names = [name for name, _ in small_model.named_modules()]
    types = [type(module) for module in small_model.modules()]
    parameters = list(small_model.parameters())
    rng = torch.get_rng_state()
    ek.patch(small_model)
    assert torch.equal(torch.get_rng_state(), rng)
    after = small_model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert [name for name, _ in small_model.named_modules()] == names
    assert [type(module) for module in small_model.modules()] == types
    assert all(a is b for a, b in zip(small_model.parameters(), parameters, strict=True))


def test_unpatch_leaves_no_trace(small_model, image):
    attributes = [dict(module.__dict__) for module in small_model.modules()]
    printed = str(small_model)
    with torch.no_grad():
        eager = small_model(image)
        ek.patch(small_model)
        assert ek.is_patched(small_model) and str(small_model) != printed
        small_model(image)
        ek.unpatch(small_model)
        assert torch.equal(small_model(image), eager)
    assert not ek.is_patched(small_model) and str(small_model) == printed
    for module, before in zip(small_model.modules(), attributes, strict=True):
        assert module.__dict__.keys() == before.keys()


def test_unpatch_reaches_a_forward_that_was_wrapped(small_model, image):
    """As hooking libraries do: ours is kept inside of theirs, which nobody can look into."""
    name = ek.patch(small_model).patched[3].name
    block = small_model.get_submodule(name)
    ours = block.forward
    block.forward = lambda x: ours(x) * 2
    ek.unpatch(small_model)
    assert not ek.is_patched(small_model)
    with torch.no_grad(), torch.autograd.profiler.profile() as seen:
        small_model(image)
    assert not any(event.name.startswith("effv2::") for event in seen.function_events)


def test_random_numbers_in_a_forward_stay_the_callers(image):
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = LIBRARIES["python_ref"]()

        def forward(self, x):
            return self.body(x + random.random() + torch.rand(1))

    model = Noisy().eval()
    torch.manual_seed(5), random.seed(5)
    expected = torch.rand(1), random.random()
    torch.manual_seed(5), random.seed(5)
    assert ek.patch(model).coverage > 0.9
    assert (torch.rand(1), random.random()) == expected


def test_patch_is_idempotent(small_model, image):
    first = ek.patch(small_model)
    with torch.no_grad():
        once = small_model(image)
        second = ek.patch(small_model)
        assert torch.equal(small_model(image), once)
    assert first == second
    ek.unpatch(small_model)
    assert not ek.is_patched(small_model)


def test_only_the_instance_is_patched(small_model):
    forwards = {type(m): type(m).forward for m in small_model.modules()}
    ek.patch(small_model)
    assert all(kind.forward is forward for kind, forward in forwards.items())


def test_every_candidate_is_in_one_list(small_model):
    report = ek.patch(small_model)
    names = [e.name for e in report.patched] + [e.name for e in report.skipped]
    assert len(names) == len(set(names))
    modules = dict(small_model.named_modules())
    assert all(name in modules for name in names)
    for entry in report.patched:
        assert entry.block in ("ConvBNAct", "FusedMBConv", "MBConv") and entry.ops
    printed = str(report)
    assert "patched" in printed and f"{report.coverage:.1%}" in printed


def test_print_tells_the_truth(small_model):
    ek.patch(small_model)
    text = str(small_model)
    assert "effv2: expand_depthwise, squeeze_excite_gate, gated_project" in text
    assert "by conv_act_pool" in text and "stem" in text


def test_an_unknown_model_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    report = ek.patch(model)
    assert not report.patched and not report.skipped and report.coverage == 0.0
    assert not ek.is_patched(model)
    assert any("no EfficientNet block" in note for note in report.notes)


def test_a_block_inside_a_foreign_model_is_found(image):
    import python_ref

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = randomise(python_ref.create("b0"))
            self.neck = nn.Conv2d(1280, 8, 1)

        def forward(self, x):
            return self.neck(self.backbone.forward_features(x))

    model = Detector().eval()
    reports = []
    assert_as_close_over(draws(model, image, lambda m: reports.append(ek.patch(m))))
    report = reports[0]
    assert any(entry.name == "backbone.stages.0.0" for entry in report.patched)
    assert 0.9 < report.coverage < 1.0


def test_strict_raises_and_changes_nothing(small_model):
    blocks = [e.name for e in ek.patch(small_model).patched]
    ek.unpatch(small_model)
    inner = small_model.get_submodule(blocks[3])
    target = next(m for m in inner.modules() if isinstance(m, nn.Conv2d))
    handle = target.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="hook"):
        ek.patch(small_model, strict=True)
    assert not ek.is_patched(small_model)
    handle.remove()
    ek.patch(small_model, strict=True)


def test_explicit_backend_that_cannot_run_raises_with_the_reason(small_model):
    for name in ("cuda", "triton"):
        status = ek.backends()[name]
        if status.available:
            pytest.skip(f"{name} runs here, so asking for it does not raise")
        assert status.reason
        with pytest.raises(RuntimeError, match=name):
            ek.patch(small_model, backend=name)
        assert not ek.is_patched(small_model)
    with pytest.raises(ValueError, match="backend must be one of"):
        ek.patch(small_model, backend="tpu")
    assert ek.patch(small_model, backend="cpu").backend == "cpu"


def test_auto_says_why_it_fell_back(small_model):
    report = ek.patch(small_model)
    if not torch.cuda.is_available():
        assert report.backend == "cpu"
        assert any("no GPU kernels" in note for note in report.notes)


def test_backends_answer_in_words():
    status = ek.backends()
    assert set(status) == {"cuda", "triton", "cpu"}
    assert status["cpu"].available
    assert all(entry.available or entry.reason for entry in status.values())


def test_patch_prints_nothing_and_survives_no_blocks():
    with redirect_stdout(io.StringIO()) as output:
        ek.patch(nn.Identity())
    assert output.getvalue() == ""


def test_capture_on_the_cpu_is_the_model_itself(small_model, image):
    ek.patch(small_model)
    assert ek.capture(small_model, image) is small_model


def test_inputs_are_never_written(small_model, image):
    ek.patch(small_model)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = image.clone(memory_format=layout)
        with torch.no_grad():
            small_model(x)
            small_model(x)
        assert torch.equal(x, image)


def test_every_block_gives_its_own_output_and_leaves_its_input(small_model, image):
    """Block by block, so that an error that a later block hides is seen."""
    inputs: dict[str, torch.Tensor] = {}
    names = [e.name for e in ek.patch(small_model).patched]
    ek.unpatch(small_model)
    modules = {name: small_model.get_submodule(name) for name in names}
    handles = [
        module.register_forward_pre_hook(
            lambda m, a, name=name: inputs.update({name: a[0].clone()})
        )
        for name, module in modules.items()
    ]
    with torch.no_grad():
        small_model(image)
    for handle in handles:
        handle.remove()
    checked = 0
    for name, module in modules.items():
        if type(module) is nn.Conv2d:
            continue  # timm's stem and head are no modules of their own
        x = inputs[name]
        with torch.no_grad():
            eager, reference = module(x.clone()), in_float64(module, x)
            ek.patch(small_model)
            kept = x.clone()
            for _ in range(2):
                assert_as_close_as_pytorch(module(x), eager, reference)
            assert torch.equal(x, kept)
            ek.unpatch(small_model)
        checked += 1
    assert checked >= 15
