"""Folded weights are never stale, and patched models survive what models go through."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import effv2_kernels as ek
from tests.patching.weights import a_conv, a_norm, assert_fresh, convs, no_grad, warm
from tests.support import in_float64, randomise, relative_error


def _replace_parameter(model: nn.Module) -> None:
    conv = a_conv(model)
    conv.weight = nn.Parameter(conv.weight.detach() * 3)


def _data_assigned_twice(model: nn.Module) -> None:
    """The second tensor may come to lie where the one that was folded lay."""
    conv = a_conv(model)
    conv.weight.data = conv.weight.data * 2
    conv.weight.data = conv.weight.data * 2


def _numpy_write(model: nn.Module) -> None:
    a_conv(model).weight.detach().numpy()[:] *= 3


def _under_inference_mode(model: nn.Module) -> None:
    with torch.inference_mode():
        a_conv(model).weight.mul_(3)


def _middle_filter_by_data(model: nn.Module) -> None:
    """Of all convolutions, so it must not move the scale of what comes out: a network whose every
    layer is off its statistics amplifies rounding until fresh and stale are alike."""
    for conv in convs(model):
        conv.weight.data[conv.out_channels // 2] *= -1


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "weight in place": no_grad(lambda m: a_conv(m).weight.mul_(3)),
    "weight.data in place": lambda m: a_conv(m).weight.data.mul_(3),
    "weight.data copied": lambda m: a_conv(m).weight.data.copy_(a_conv(m).weight.data * 3),
    "the middle filter of each weight.data": _middle_filter_by_data,
    "weight.data assigned": lambda m: setattr(a_conv(m).weight, "data", a_conv(m).weight.data * 3),
    "weight.data assigned twice": _data_assigned_twice,
    "parameter replaced": _replace_parameter,
    "numpy view": _numpy_write,
    "under inference_mode": _under_inference_mode,
    "gamma": no_grad(lambda m: a_norm(m).weight.mul_(3)),
    "beta.data": lambda m: a_norm(m).bias.data.add_(1),
    "one row of a weight, in place": no_grad(lambda m: a_conv(m).weight[-1].mul_(50)),
    "running_mean": no_grad(lambda m: a_norm(m).running_mean.add_(1)),
    "running_var.data": lambda m: a_norm(m).running_var.data.mul_(9),
    "eps": lambda m: setattr(a_norm(m), "eps", 3.0),
    "all parameters, foreach": no_grad(lambda m: torch._foreach_mul_(list(m.parameters()), 0.97)),
    "squeeze-excite bias": no_grad(
        lambda m: [c.bias.add_(0.5) for c in convs(m) if c.bias is not None]
    ),
    "squeeze-excite weight replaced": lambda m: [
        setattr(c, "weight", nn.Parameter(c.weight.detach() * -1))
        for c in convs(m)
        if c.bias is not None
    ],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_eval_mode_is_seen(change, small_model, image):
    stale = warm(small_model, image)
    CHANGES[change](small_model)
    assert_fresh(small_model, image, stale)
    with torch.no_grad():
        small_model(image)
    assert_fresh(small_model, image, stale)  # packed again, too


def test_load_state_dict_after_patch(small_model, image):
    stale = warm(small_model, image)
    other = randomise(copy.deepcopy(small_model), seed=7).state_dict()
    small_model.load_state_dict(other, strict=True)
    assert_fresh(small_model, image, stale)
    small_model.load_state_dict(other, strict=True, assign=True)
    assert_fresh(small_model, image, stale)


def test_a_training_step_moves_the_statistics(small_model, image):
    stale = warm(small_model, image)
    small_model.train()
    with torch.no_grad():
        small_model(image)
    small_model.eval()
    assert_fresh(small_model, image, stale)


def test_an_optimizer_step_is_seen(small_model, image):
    stale = warm(small_model, image)
    small_model.train()
    optimizer = torch.optim.SGD(small_model.parameters(), lr=0.01)
    small_model(image).square().mean().backward()
    optimizer.step()
    small_model.eval()
    assert_fresh(small_model, image, stale)


def test_deepcopy_is_patched_and_independent(small_model, image):
    first = warm(small_model, image)
    ema = copy.deepcopy(small_model)
    with torch.no_grad():
        for parameter in small_model.parameters():
            parameter.mul_(1.02)  # of dozens of layers, twice each: more makes rounding explode
        assert torch.equal(ema(image), first)
        assert_fresh(small_model, image, first)
        for parameter in ema.parameters():
            parameter.lerp_(torch.zeros_like(parameter), 0.3)
    assert_fresh(ema, image, first)
    ek.unpatch(ema)
    assert ek.is_patched(small_model) and not ek.is_patched(ema)


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_pickle_is_patched_and_independent(how, small_model, image):
    first = warm(small_model, image)
    if how == "pickle":
        loaded = pickle.loads(pickle.dumps(small_model))
    else:
        file = io.BytesIO()
        torch.save(small_model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
    with torch.no_grad():
        assert torch.equal(loaded(image), first)
        a_norm(small_model).bias.add_(1)
        assert torch.equal(loaded(image), first)
        a_norm(loaded).weight.mul_(3)
    assert_fresh(loaded, image, first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
def test_to_another_dtype_and_back(dtype, small_model, image):
    # In 16 bits the errors of a few logits are a throw of dice, for PyTorch as for us: many images.
    image = torch.randn(16, *image.shape[1:], generator=torch.Generator().manual_seed(2))
    warm(small_model, image)
    plain = copy.deepcopy(small_model)
    ek.unpatch(plain)
    with torch.no_grad():
        small_model.to(dtype), plain.to(dtype)
        reference = in_float64(plain, image.to(dtype))
        for _ in range(3):
            found = small_model(image.to(dtype))
            assert found.dtype == dtype
            limit = 2 * relative_error(plain(image.to(dtype)), reference) + 1e-12
            assert relative_error(found, reference) <= limit
    small_model.float()
    assert_fresh(small_model, image, None)


def test_memory_formats_and_sizes_take_turns(small_model, image):
    warm(small_model, image)
    small_model.to(memory_format=torch.channels_last)
    sizes = [(1, 33, 33), (2, 65, 78), (3, 64, 64), (1, 40, 97), (2, 33, 50), (1, 70, 70)]
    plain = copy.deepcopy(small_model)
    ek.unpatch(plain)
    with torch.no_grad():
        for n, h, w in sizes * 3:
            x = torch.randn(n, 3, h, w).to(memory_format=torch.channels_last)
            assert relative_error(small_model(x), in_float64(plain, x)) < 1e-5


def test_packed_shapes_do_not_pile_up(small_model):
    from effv2_kernels.running.folding import MAX_PACKED_SHAPES

    ek.patch(small_model)
    with torch.no_grad():
        for size in range(33, 33 + 3 * MAX_PACKED_SHAPES):
            for _ in range(3):
                small_model(torch.randn(1, 3, size, size))
    runners = [
        module.forward.runner
        for module in small_model.modules()
        if hasattr(module.__dict__.get("forward"), "runner")
    ]
    found = [runner.folded._snapshot for runner in runners if hasattr(runner, "folded")]
    assert max(len(s.packed) for s in found if s is not None) == MAX_PACKED_SHAPES


def test_more_shapes_in_turn_than_are_packed(monkeypatch):
    """A cache that packed for each of them would spend its time on packing."""
    import python_ref
    from effv2_kernels.running import folding

    block = randomise(python_ref.create("b0")).eval().stages[1][0]
    ek.patch(block)
    packings = []
    honest = folding.pack_for_onednn
    monkeypatch.setattr(
        folding, "pack_for_onednn", lambda *args: packings.append(1) or honest(*args)
    )
    channels = block.expand.conv.in_channels
    images = [torch.randn(n, channels, 9, 9) for n in range(1, folding.MAX_PACKED_SHAPES + 3)]
    with torch.no_grad():
        for image in images * 12:
            block(image)
        assert len(packings) == folding.MAX_PACKED_SHAPES
        for _ in range(20):  # what comes often enough is packed all the same
            block(images[-1])
    assert len(packings) == folding.MAX_PACKED_SHAPES + 1


def test_weights_made_under_inference_mode(image):
    """They have no version counter: nothing may be cached."""
    import python_ref

    with torch.inference_mode():
        model = python_ref.create("b0", num_classes=10)
    model.eval()
    with torch.inference_mode():
        ek.patch(model)
        first = model(image)
        a_conv(model).weight[0, 0, 0, 0] += 100.0
        changed = model(image)
        plain = copy.deepcopy(model)
        ek.unpatch(plain)
        assert relative_error(changed, plain(image)) < 1e-4
        assert relative_error(changed, first) > 1e-6


def test_refresh_drops_what_is_cached(small_model, image):
    warm(small_model, image)
    ek.refresh(small_model)
    assert_fresh(small_model, image, None)


def test_a_forward_that_failed_half_way_leaves_nothing_stale(small_model, image):
    """The blocks behind the failure did not look at their weights in that forward."""
    stale = warm(small_model, image)
    with torch.no_grad():
        for conv in convs(small_model):
            conv.weight.mul_(0.9)
    forwards = [m.__dict__["forward"] for m in small_model.modules() if "forward" in m.__dict__]
    folded = [f.runner.folded for f in forwards if hasattr(f.runner, "folded")]
    middle = folded[len(folded) // 2]
    middle.weights = _fail
    with pytest.raises(ArithmeticError), torch.no_grad():
        small_model(image)
    del middle.weights
    assert_fresh(small_model, image, stale)


def _fail(*_: object, **__: object) -> None:
    raise ArithmeticError("planted")
