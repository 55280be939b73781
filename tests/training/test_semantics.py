"""Autocast, hooks on what is saved, versions, copies: what else a training program does."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import effv2_kernels as ek
from tests.support import passes, relative_error, rms
from tests.training.compare import Step, errors, step
from tests.training.small import (
    LIBRARIES,
    assert_all_close,
    assert_same,
    assert_steps_as,
    block,
    images,
    maps,
    network,
    our_ops,
    patched,
)


def _scaled_step(model: nn.Module, x: Tensor, dtype: torch.dtype, inside: bool) -> Step:
    """A step under autocast with a scaled loss, the gradients then unscaled. inside: the backward,
    too, is under autocast."""
    x = x.detach().clone().requires_grad_()
    optimiser = torch.optim.SGD([x, *model.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    with torch.autocast("cpu", dtype):
        output = model(x)
        with nullcontext() if inside else torch.autocast("cpu", enabled=False):
            mix = torch.Generator().manual_seed(1)
            mix = torch.randn(output.shape, generator=mix, dtype=torch.float64)
            scaler.scale((output.double() * mix).sum()).backward()
    scaler.unscale_(optimiser)
    gradients = {f"d {name}": p.grad for name, p in model.named_parameters()}
    found = {"output": output.detach(), "d input": x.grad, **gradients}
    return {**found, **{name: b.clone() for name, b in model.named_buffers()}}


@pytest.mark.parametrize(
    ("library", "dtype", "inside"),
    [
        *((library, torch.bfloat16, False) for library in LIBRARIES),
        *((library, torch.float16, False) for library in LIBRARIES),
        ("python_ref", torch.bfloat16, True),
        ("timm", torch.float16, True),
    ],
)
def test_autocast(library: str, dtype: torch.dtype, inside: bool) -> None:
    """Errors pooled over networks and tensors: three times PyTorch's are allowed."""
    ours_of: dict[str, list[float]] = {"gradients": [], "others": []}
    theirs_of: dict[str, list[float]] = {"gradients": [], "others": []}
    for seed in range(3):
        plain = network(library, seed=seed).float()
        x = images(4, seed=seed).float()
        exact = step(copy.deepcopy(plain).double(), x.double())
        ours = patched(plain)
        found, eager = (_scaled_step(model, x, dtype, inside) for model in (ours, plain))
        assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in eager.items()}
        for pooled, one in ((ours_of, found), (theirs_of, eager)):
            for name, error in errors(one, exact).items():
                pooled["gradients" if name.startswith("d ") else "others"].append(error)
    for kind, found in ours_of.items():
        assert passes(rms(found), rms(theirs_of[kind]), 3.0), kind
    assert rms(theirs_of["gradients"]) > 1e-4  # it did compute in 16 bits


def test_autocast_runs_our_ops() -> None:
    ours = patched(network().float())
    with torch.autocast("cpu", torch.bfloat16):
        ran = our_ops(lambda: ours(images().float()).float().sum().backward())
    assert len(ran) == 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("skip", [True, False], ids=["residual", "no residual"])
@pytest.mark.parametrize("kind", ["mbconv", "fused"])
def test_autocast_promotes_as_pytorch_does(kind: str, skip: bool, dtype: torch.dtype) -> None:
    """A wider input makes the residual's sum wider; its gradient is of its own dtype."""
    plain = block(kind, out_chs=12 if skip else 20, drop_path=0.5).float()
    results = []
    for model in (plain, patched(plain)):
        x = maps(6).to(dtype).requires_grad_()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        mix = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        (out.float() * mix).sum().backward()
        results.append((out, x.grad))
    for found, right in zip(results[1], results[0], strict=True):
        assert found.dtype == right.dtype
        assert relative_error(found, right) < 0.1


def test_autocast_switched_off_inside() -> None:
    plain = network().float()
    ours = patched(plain)
    x = images().float()
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        found = step(ours, x)
    assert found["output"].dtype == torch.float32
    exact = step(copy.deepcopy(plain).double(), x.double())
    assert rms(list(errors(found, exact).values())) < 1e-4


def test_float64_under_autocast() -> None:
    """Is PyTorch's error."""
    plain = block().float()
    messages = []
    for model in (plain, patched(plain)):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError) as caught:
            model(maps())
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("scale", [2.0**4, 2.0**120], ids=["finite", "overflow"])
def test_gradient_scaler(scale: float) -> None:
    """Where gradients overflow, both skip the step and halve the scale."""
    plain = network().float()
    before = copy.deepcopy(plain.state_dict())
    scales, models = [], (plain, patched(plain))
    for model in models:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with torch.autocast("cpu", torch.float16):
            loss = model(images().float()).float().square().sum()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales == [scale if scale < 2.0**20 else scale / 2] * 2
    for model in models:
        moved = [not torch.equal(p, before[name]) for name, p in model.named_parameters()]
        assert any(moved) == (scale < 2.0**20)


PACKINGS: dict[str, tuple[Callable, Callable]] = {
    "clone": (Tensor.clone, lambda t: t),
    "contiguous": (lambda t: t, Tensor.contiguous),
    "channels first": (lambda t: t.contiguous(memory_format=torch.contiguous_format), Tensor.clone),
    "through numpy": (lambda t: t.detach().numpy().copy(), torch.from_numpy),
    "from a file": (
        lambda t: pickle.dumps(t.detach().clone()),
        lambda text: pickle.loads(text),
    ),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_hooks_on_saved_tensors(library: str, packing: str) -> None:
    plain = network(library, drop_path=0.5)
    hooks = torch.autograd.graph.saved_tensors_hooks(*PACKINGS[packing])
    found = step(patched(plain), images(), hooks)
    assert_same(found, step(plain, images()))


def test_saved_on_the_cpu() -> None:
    plain = network()
    found = step(patched(plain), images(), torch.autograd.graph.save_on_cpu())
    assert_same(found, step(plain, images()))


def test_saved_tensors_are_seen_by_hooks() -> None:
    """Offloading moves what a block keeps: all of it goes through the hooks."""
    seen: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t)
    ours = patched(block())
    with hooks:
        ours(maps())
    assert {tuple(t.shape) for t in seen} >= {(3, 12, 9, 7), (3, 48, 9, 7), (5, 48), (5, 12)}


_CHANGED = [
    "expand.conv.weight",
    "expand.bn.weight",
    "depthwise.conv.weight",
    "depthwise.bn.weight",
    "se.reduce.weight",
    "se.expand.weight",
    "project.conv.weight",
    "project.bn.weight",
]


@pytest.mark.parametrize("name", [*_CHANGED, "input"])
def test_a_change_in_place_before_the_backward(name: str) -> None:
    """Is PyTorch's version error, as unpatched."""
    plain = block()
    for model in (plain, patched(plain)):
        leaf = maps().requires_grad_()
        x = leaf.clone()
        out = model(x).square().sum()
        with torch.no_grad():
            (x if name == "input" else model.get_parameter(name)).mul_(1.01)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()


def test_a_change_in_place_of_the_output() -> None:
    """Nothing that is kept lies in it."""
    plain = block()
    results = []
    for model in (plain, patched(plain)):
        x = maps().requires_grad_()
        out = model(x).mul_(2.0).add_(1.0)
        results.append(torch.autograd.grad(out.square().sum(), [x, *model.parameters()]))
    assert_all_close(results[1], results[0])


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_copy_trains_by_itself(library: str) -> None:
    plain = network(library, drop_path=0.5)
    ours = patched(plain)
    step(ours, images()), step(plain, images())
    average, before = copy.deepcopy(ours), copy.deepcopy(ours.state_dict())
    assert len(our_ops(lambda: copy.deepcopy(average)(images()))) == 8
    expected = copy.deepcopy(plain)
    for model in (average, expected):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(2):
            step(model, images(seed=i), seed=i)
            optimiser.step()
    assert_steps_as(expected, average, images())
    assert all(torch.equal(t, before[name]) for name, t in ours.state_dict().items())
    assert_steps_as(plain, ours, images())


def test_averaged_model() -> None:
    from torch.optim.swa_utils import AveragedModel, update_bn

    plain = network()
    results = []
    for model in (plain, patched(plain)):
        average = AveragedModel(model, use_buffers=False)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
        for i in range(2):
            step(model, images(seed=i))
            optimiser.step()
            average.update_parameters(model)
        update_bn([images(seed=i) for i in range(3)], average)
        results.append(average.eval()(images()).detach())
        assert bool(our_ops(lambda average=average: average(images()))) == (model is not plain)
    assert relative_error(results[1], results[0]) < 1e-11


@pytest.mark.parametrize("library", LIBRARIES)
def test_training_and_evaluation_take_turns(library: str) -> None:
    """Evaluation sees the weights and the statistics that training left."""
    plain = network(library, drop_path=0.3)
    ours = patched(plain)
    optimisers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (plain, ours)]
    last = None
    for i in range(3):
        found, right = step(ours, images(seed=i), seed=i), step(plain, images(seed=i), seed=i)
        assert_same(found, right, 1e-9)  # steps compound
        for optimiser in optimisers:
            optimiser.step()
        ours.eval(), plain.eval()
        with torch.no_grad():
            for _ in range(2):
                out, expected = ours(images()), plain(images())
                assert relative_error(out, expected) < 1e-9
        assert last is None or relative_error(out, last) > 1e-3
        last = out
        ours.train(), plain.train()


@pytest.mark.parametrize("library", LIBRARIES)
def test_pickle(library: str) -> None:
    plain = network(library, drop_path=0.5)
    ours = patched(plain)
    loaded = pickle.loads(pickle.dumps(ours))
    assert ek.is_patched(loaded)
    assert len(our_ops(lambda: copy.deepcopy(loaded)(images()))) == 8
    assert_steps_as(plain, loaded, images(), steps=2)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert_steps_as(plain.__class__.train(copy.deepcopy(ours)), again, images())


def test_patched_again_and_taken_back() -> None:
    plain = network()
    ours = patched(plain)
    assert_steps_as(plain, ours, images())
    ek.patch(ours, training=False)
    assert not our_ops(lambda: copy.deepcopy(ours)(images()))
    assert_steps_as(plain, ours, images())
    ek.patch(ours)
    assert len(our_ops(lambda: copy.deepcopy(ours)(images()))) == 8
    assert_steps_as(plain, ours, images())
    ek.unpatch(ours)
    assert not our_ops(lambda: copy.deepcopy(ours)(images()))
    assert_steps_as(plain, ours, images())
