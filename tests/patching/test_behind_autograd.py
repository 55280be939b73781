"""Writes that move no version counter, on a CPU, where folded weights are kept: seen through the
contents, or everything that was kept is gone by then."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import effv2_kernels as ek
import python_ref
from effv2_kernels.running import freshness
from effv2_kernels.running.freshness import _LEAST_SAMPLE, Stamp
from tests.patching.weights import (
    a_norm,
    assert_fresh,
    folded_convs,
    fused_step,
    norms,
    runners,
    warm,
)
from tests.support import randomise, relative_error


class Between(nn.Module):
    """A user's module: what it sees decides what it writes into the norms of later blocks."""

    def __init__(self, write: Callable[[nn.BatchNorm2d, Tensor], None]):
        super().__init__()
        self.write = write
        self.later: list[nn.BatchNorm2d] = []  # in a list, so that they are not its children

    def forward(self, x: Tensor) -> Tensor:
        condition = (100 * x.mean()).sin().detach()
        for norm in self.later:
            self.write(norm, condition)
        return x


def _in_place(norm: nn.BatchNorm2d, condition: Tensor) -> None:
    with torch.no_grad():
        norm.bias.fill_(condition)


def _by_data(norm: nn.BatchNorm2d, condition: Tensor) -> None:
    norm.bias.data.fill_(condition)


def _by_replacing(norm: nn.BatchNorm2d, condition: Tensor) -> None:
    norm.bias = nn.Parameter(condition.expand_as(norm.bias).clone())


def _of_one_channel(norm: nn.BatchNorm2d, condition: Tensor) -> None:
    norm.running_mean.data[norm.num_features // 2] = 3 * condition


WRITERS = [_in_place, _by_data, _by_replacing, _of_one_channel]


def _late(model: nn.Module) -> nn.Module:
    """A stage deep in a model, or a block itself."""
    return model if hasattr(model, "project") else _stages(model)[5]


def _stages(model: nn.Module) -> nn.Module:
    return next(getattr(model, n) for n in ("stages", "blocks", "features") if hasattr(model, n))


def _later_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Those of the last stage that holds blocks."""
    return norms(_stages(model)[5])


def _images(image: Tensor) -> list[Tensor]:
    return [image, 3 - image, image.flip(0) * 0.2, image]


def _insert(model: nn.Module, between: Between, how: str) -> None:
    stages = _stages(model)
    stage = stages[3]
    if how == "module":
        stages[3] = nn.Sequential(stage, between)
    elif how == "forward":
        stage.forward = lambda x: between(type(stage).forward(stage, x))
    else:
        stage.register_forward_hook(lambda module, args, output: between(output))


@torch.no_grad()
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("how", ["module", "forward", "hook", "hook after the patch"])
def test_a_norm_that_depends_on_the_image(how, write, small_model, image):
    """A conditional norm, between two stages or listening to one of them."""
    between = Between(write).eval()
    between.later = norms(_stages(small_model)[5])[:1]
    if how != "hook after the patch":
        _insert(small_model, between, how)
    warm(small_model, image)
    if how == "hook after the patch":
        _insert(small_model, between, how)
    images = [image, -image, torch.randn_like(image), image]
    outputs = [small_model(x) for x in images]
    ek.unpatch(small_model)
    for x, output in zip(images, outputs, strict=True):
        assert relative_error(output, small_model(x)) < 1e-4
    between.write = lambda norm, condition: None  # what the last image wrote is not the second's
    assert relative_error(small_model(images[1]), outputs[1]) > 1e-3


def _three_sigma(weight: Tensor) -> None:
    """In training a clamp of outliers; random weights have fewer of them than trained ones."""
    limit = 3 * weight.std().item()
    weight.data.clamp_(-limit, limit)


def _one_filter_to_zero(weight: Tensor) -> None:
    weight.data[weight.shape[0] // 3] = 0


def _filters_by_a_mask(weight: Tensor) -> None:
    mask = torch.ones(weight.shape[0], 1, 1, 1)
    mask[:: max(weight.shape[0] // 4, 2)] = 0
    weight.data.mul_(mask)


def _elements_by_a_mask(weight: Tensor) -> None:
    """The smallest tenth: pruning by magnitude."""
    size = weight.abs()
    weight.data.mul_(size > size.flatten().kthvalue(max(size.numel() // 10, 1)).values)


PRUNINGS = [_three_sigma, _one_filter_to_zero, _filters_by_a_mask, _elements_by_a_mask]


@torch.no_grad()
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("prune", PRUNINGS)
def test_every_convolution_is_pruned(prune, hooked, small_model, image):
    """hooked: blocks look one by one, for somebody listens to a stage."""
    _normally_distributed(small_model)
    if hooked:
        _stages(small_model)[2].register_forward_hook(lambda *_: None)
    stale = warm(small_model, image)
    for conv in folded_convs(small_model):
        prune(conv.weight)
    assert_fresh(small_model, image, stale)


@torch.no_grad()
@pytest.mark.parametrize("prune", PRUNINGS)
def test_one_convolution_is_pruned(prune, small_model, image):
    """Each in turn, and put back. Judged by bits, for one element of a large weight says little:
    the first forward that folds anew always takes the same way."""
    _normally_distributed(small_model)
    warm(small_model, image)
    differs = []
    for conv in folded_convs(small_model)[::3]:
        before = conv.weight.clone()
        stale = small_model(image)
        prune(conv.weight)
        found = small_model(image)
        ek.refresh(small_model)
        assert torch.equal(found, small_model(image))
        if not torch.equal(conv.weight, before):
            differs.append(not torch.equal(found, stale))
        conv.weight.data.copy_(before)
    assert sum(differs) > 0.9 * len(differs) > 5  # a channel may happen to matter to nobody


def _normally_distributed(model: nn.Module) -> None:
    """As trained weights roughly are: uniform ones have no outliers."""
    generator = torch.Generator().manual_seed(4)
    for conv in folded_convs(model):
        conv.weight.normal_(0, conv.weight.std().item(), generator=generator)


@pytest.mark.parametrize("shape", [(1536, 256, 1, 1), (256, 1536, 1, 1), (64, 64, 3, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_a_clamp_is_seen_however_little_it_changes(memory_format, shape):
    """Down to the one element that is largest."""
    conv = nn.Conv2d(shape[1], shape[0], shape[2], bias=False).to(memory_format=memory_format)
    for _ in range(50):
        conv.weight.data.normal_()
        for clamp in (
            lambda w: w.clamp_(max=w.max().item() - 1e-3),
            lambda w: w.clamp_(min=w.min().item() + 1e-3),
            lambda w: w.clamp_(-4, 4),
            lambda w: w.clamp_(-3, 3),
        ):
            stamp, before = Stamp([conv], []), conv.weight.clone()
            assert stamp.matches()
            clamp(conv.weight.data)
            assert stamp.matches() == torch.equal(conv.weight, before)


@torch.no_grad()
@pytest.mark.parametrize(
    "shape", [(1536, 256, 1, 1), (24, 1536, 1, 1), (1152, 1, 3, 3), (7, 5, 3, 3)]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_write_to_any_filter_is_seen(memory_format, shape):
    out, per_group, size, _ = shape
    groups = out if per_group == 1 else 1
    conv = nn.Conv2d(per_group * groups, out, size, groups=groups, bias=False)
    conv.to(memory_format=memory_format).weight.data.normal_()
    stamp = Stamp([conv], [])
    for i in range(out):
        before = conv.weight.data[i].clone()
        conv.weight.data[i] = 0
        assert not stamp.matches()
        conv.weight.data[i] = before
        assert stamp.matches()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_optimizer_and_frozen_norms(kind, small_model, image):
    stale = warm(small_model, image)
    for _ in range(2):
        fused_step(small_model, image, kind, lr=1e-4)
        assert_fresh(small_model, image, stale)
        stale = warm(small_model, image)


@torch.no_grad()
def hidden_write(model: nn.Module) -> None:
    """To single elements of a convolution, behind autograd's back, that no sample shows: what a
    stamp cannot see."""
    conv = next(c for c in folded_convs(_late(model)) if c.weight.numel() > 4 * _LEAST_SAMPLE)
    stamp, weight = Stamp([conv], []), conv.weight.data
    written = 0
    for place in torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(5)):
        index = torch.unravel_index(place, weight.shape)
        before = weight[index].clone()
        weight[index] = 20 * weight.std()
        if stamp.matches():
            written += 1
        else:
            weight[index] = before
        if written == 30:
            return
    raise AssertionError("every element is sampled")


EVENTS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "refresh": lambda m, x: ek.refresh(m),
    "train, eval": lambda m, x: m.train().eval(),
    "its stage left eval": lambda m, x: _stages(m)[5].train().eval(),
    "a training forward": lambda m, x: (_set_training(m, True), m(x), _set_training(m, False)),
    "autograd recorded": lambda m, x: _with_autograd(m, x),
    "to meta and back": lambda m, x: _to_meta_and_back(m, x),
    "to float64 and back": lambda m, x: m.double().float(),
    "a seen write to a norm": lambda m, x: a_norm(m).bias.data.mul_(1.0001),
    "a seen write to a weight": lambda m, x: folded_convs(m)[3].weight.data.mul_(1.0001),
}  # fmt: skip


def _set_training(model: nn.Module, mode: bool) -> None:
    """Without ``train``, by which a patched module notices."""
    for module in model.modules():
        module.training = mode and not isinstance(module, nn.BatchNorm2d)


def _with_autograd(model: nn.Module, image: Tensor) -> None:
    with torch.enable_grad():
        model(image)


def _to_meta_and_back(model: nn.Module, image: Tensor) -> None:
    state = model.state_dict()
    model.to("meta")
    model(image.to("meta"))
    assert all(runner.folded._snapshot is None for runner in runners(model))
    model.to_empty(device="cpu").load_state_dict(state)


@torch.no_grad()
def test_what_cannot_be_seen(small_model, image):
    """The documentation says so: if this fails, mend it."""
    stale = warm(small_model, image)
    hidden_write(small_model)
    assert torch.equal(small_model(image), stale)
    ek.refresh(small_model)
    assert_fresh(small_model, image, stale)


@torch.no_grad()
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("event", EVENTS)
def test_what_drops_all_that_is_kept(event, hooked, small_model, image):
    """hooked: blocks look one by one, too."""
    if hooked:
        _stages(small_model)[2].register_forward_hook(lambda *_: None)
    stale = warm(small_model, image)
    hidden_write(small_model)
    assert torch.equal(small_model(image), stale)
    EVENTS[event](small_model, image)
    assert_fresh(small_model, image, stale)


@torch.no_grad()
@pytest.mark.parametrize(
    "event", ["refresh", "train, eval", "a training forward", "autograd recorded"]
)
def test_what_drops_all_that_a_block_alone_keeps(event):
    block = randomise(python_ref.create("b0")).eval().stages[5][1]
    x = torch.randn(2, block.project.conv.out_channels, 9, 9)
    stale = warm(block, x)
    hidden_write(block)
    assert torch.equal(block(x), stale)
    EVENTS[event](block, x)
    assert_fresh(block, x, stale)


def test_a_train_of_the_models_own_stays(small_model, image):
    """The idiom that keeps a model frozen."""
    asked = []
    small_model.train = own = lambda mode=True: asked.append(mode) or small_model
    warm(small_model, image)
    asked.clear()
    assert small_model.train() is small_model and asked == [True] and not small_model.training
    ek.unpatch(small_model)
    assert vars(small_model)["train"] is own


@pytest.mark.parametrize("shape", [(144, 24, 1, 1), (96, 24, 3, 3), (240, 40, 1, 1)], ids=str)
def test_samples_come_from_every_column(shape):
    """Else a write to every second input channel would not be seen."""
    weight = torch.arange(math.prod(shape), dtype=torch.float64).view(shape)
    row = math.prod(shape[1:])
    sample = freshness._samples(weight)[0].long()
    assert set((sample % row).tolist()) == set(range(row))
    assert set((sample // row).tolist()) == set(range(shape[0]))
