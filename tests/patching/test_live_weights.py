"""On a GPU nothing that was derived from a weight outlives a forward, so that nothing can be stale.

Its rules, on the CPU: norms are not folded, hence the runners take a GPU's path, on which the ops'
CPU implementations compute real values.
"""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import effv2_kernels as ek
import python_ref
from effv2_kernels import ops
from effv2_kernels.patching import wrappers
from effv2_kernels.running import inference, look
from tests.patching.weights import (
    a_conv,
    a_norm,
    assert_fresh,
    convs,
    folded_convs,
    fused_step,
    norms,
    runners,
    warm,
)
from tests.support import in_float64, randomise, relative_error


def follow_the_rules_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (inference, wrappers):
        monkeypatch.setattr(module, "folds", lambda x, triton: False)


@pytest.fixture(autouse=True)
def rules_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    follow_the_rules_of_a_gpu(monkeypatch)


class Derived(TorchDispatchMode):
    """What is made within it of weights alone: of parameters and buffers, and of what was made of
    them, but not of the image. made: all of it; copies: the memory of what is not a view."""

    def __init__(self, model: nn.Module, image: Tensor):
        super().__init__()
        self.made: list[weakref.ref[Tensor]] = []
        self.copies: list[StorageWeakRef] = []
        self._live = {_storage(t) for t in chain(model.parameters(), model.buffers())}
        self._origin = {**dict.fromkeys(self._live, "weight"), _storage(image): "image"}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        origins = {self._origin.get(_storage(t)) for t in _tensors((args, kwargs))}
        origin = next((o for o in ("image", "weight") if o in origins), None)
        for tensor in _tensors(found):
            self._origin[_storage(tensor)] = origin  # it may lie where another one lay
            if origin == "weight":
                self.made.append(weakref.ref(tensor))
                if _storage(tensor) not in self._live:
                    self.copies.append(StorageWeakRef(tensor.untyped_storage()))
        return found

    def survivors(self) -> int:
        gc.collect()
        return sum(ref() is not None for ref in self.made) + sum(
            not copy.expired() for copy in self.copies
        )


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _alive() -> list[Tensor]:
    gc.collect()
    return [o for o in gc.get_objects() if issubclass(type(o), Tensor)]


def _reachable_tensors(*roots: object) -> set[int]:
    """By identity, through everything that Python's collector knows but modules and classes."""
    seen: set[int] = set()
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | type(sys)):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            found.add(id(one))
        elif callable(one) and hasattr(one, "__globals__"):
            waiting += [getattr(one, "__closure__", None), getattr(one, "__self__", None)]
        else:
            waiting += gc.get_referents(one)
    return found


def _autocast() -> torch.autocast:
    """Without PyTorch's own cache, in which the classifier's weight stays until it is left."""
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("context", [nullcontext, _autocast], ids=["float32", "autocast"])
def test_nothing_made_of_weights_survives_a_forward(context, layout, device, small_model, image):
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    small_model.to(device, memory_format=memory_format)
    image = image.to(device)
    ek.patch(small_model)
    for _ in range(2):
        with torch.no_grad(), context():
            with Derived(small_model, image) as derived:
                output = small_model(image)
            assert derived.survivors() == 0
        assert output.shape == (2, 100)
        # That it looked at something: the gates' weights become matrices in every case, and what
        # the kernels cannot read is converted. What they can read is not.
        gates = [conv for conv in convs(small_model) if conv.bias is not None]
        assert len(derived.made) >= len(gates) > 0
        if context is _autocast and device == "cpu":  # "meta" knows no autocast
            assert len(derived.copies) >= len(convs(small_model))
        elif layout == "contiguous":
            assert len(derived.copies) >= 1
        else:
            assert not derived.copies


@pytest.mark.parametrize("context", [nullcontext, _autocast], ids=["float32", "autocast"])
def test_a_forward_leaves_its_output_and_nothing_else(context, small_model, image):
    """Of all tensors of the process, and of all that the model and its runners hold."""
    before = _alive()
    with torch.no_grad():
        ek.patch(small_model)
        with context():
            output = small_model(image)
    of_before = set(map(id, before))
    assert [t for t in _alive() if id(t) not in of_before and t is not output] == []
    held = _reachable_tensors(small_model, look._CURRENT.look)
    assert held == set(map(id, chain(small_model.parameters(), small_model.buffers())))


def test_a_block_alone_leaves_nothing(image):
    block = randomise(python_ref.create("b0")).eval().stages[4][1]
    x = torch.randn(2, block.project.conv.out_channels, 9, 9)
    ek.patch(block)
    with torch.no_grad(), Derived(block, x) as derived:
        block(x)
    assert derived.made and derived.survivors() == 0
    own = set(map(id, chain(block.parameters(), block.buffers())))
    assert _reachable_tensors(block, look._CURRENT.look) == own


def test_what_a_cpu_kept_goes_with_the_first_forward(monkeypatch, small_model, image):
    """A model that moved from a CPU to a GPU."""
    monkeypatch.undo()
    before = _alive()
    warm(small_model, image)
    assert len(_alive()) > len(before) + len(convs(small_model))
    follow_the_rules_of_a_gpu(monkeypatch)
    with torch.no_grad():
        small_model(image)
    of_before = set(map(id, before))
    assert [t.shape for t in _alive() if id(t) not in of_before] == []
    assert all(runner.folded._snapshot is None for runner in runners(small_model))


def _ema_swapped_in(model: nn.Module, image: Tensor) -> None:
    average = [0.98 * p.detach() for p in model.parameters()]
    for parameter, value in zip(model.parameters(), average, strict=True):
        parameter.data.copy_(value)


def _foreach_ema(model: nn.Module, image: Tensor) -> None:
    data = [p.data for p in model.parameters()]
    torch._foreach_lerp_(data, [torch.zeros_like(p) for p in data], 0.02)


def _sgd_step(model: nn.Module, image: Tensor) -> None:
    """With autograd, in evaluation."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0001)
    model(image).flatten(1).log_softmax(1)[:, 0].mean().neg().backward()
    optimizer.step()


def _a_window(model: nn.Module) -> nn.Conv2d:
    """A dense convolution of 3x3 pixels: a kernel does not read its weight as it lies."""
    return [c for c in convs(model) if c.kernel_size != (1, 1) and c.groups == 1][-1]


WRITES: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "fused AdamW, frozen norms": lambda m, x: fused_step(m, x, torch.optim.AdamW, 1e-3),
    "fused SGD, frozen norms": lambda m, x: fused_step(m, x, torch.optim.SGD, 1e-4),
    "an optimizer's step": _sgd_step,
    "EMA swapped in": _ema_swapped_in,
    "foreach on .data": _foreach_ema,
    "a depthwise weight's .data": lambda m, x: a_conv(m).weight.data.mul_(3),
    "a dense weight's .data": lambda m, x: _a_window(m).weight.data.mul_(1.5),
    "a pointwise weight's .data": lambda m, x: folded_convs(m)[-1].weight.data.mul_(1.5),
    "one filter's .data": lambda m, x: a_conv(m).weight.data[-1].mul_(50),
    "running_var.data": lambda m, x: a_norm(m).running_var.data.mul_(9),
    "beta replaced": lambda m, x: setattr(a_norm(m), "bias", nn.Parameter(a_norm(m).bias + 1)),
    "eps": lambda m, x: setattr(a_norm(m), "eps", a_norm(m).eps + 3),
}


@torch.no_grad()
@pytest.mark.parametrize("write", WRITES)
def test_whoever_wrote_the_weights(write, small_model, image):
    stale = warm(small_model, image)
    for _ in range(2):  # between two forwards, and between the next two
        with torch.enable_grad():
            WRITES[write](small_model, image)
        assert_fresh(small_model, image, stale)
        stale = small_model(image)


@torch.no_grad()
def test_numpy_writes_of_single_elements(small_model, image):
    """At places drawn at random, of convolutions of all kinds, one after the other: written, and
    put back."""
    generator = np.random.default_rng(3)
    right = warm(small_model, image)
    for conv in folded_convs(small_model)[::3]:
        memory = conv.weight.detach().numpy()
        place = tuple(generator.integers(size) for size in memory.shape)
        before, memory[place] = memory[place].copy(), 10 * np.abs(memory).max()
        assert_fresh(small_model, image, right)
        memory[place] = before
        assert torch.equal(small_model(image), right)


@torch.no_grad()
@pytest.mark.parametrize("stage, index", [(0, 0), (1, 1), (4, 0), (4, 1)])
def test_a_block_called_alone(stage, index):
    block = randomise(python_ref.create("b0")).eval().stages[stage][index]
    channels = convs(block)[0].in_channels
    x = torch.randn(2, channels, 9, 9)
    optimizers = (torch.optim.SGD, torch.optim.AdamW)
    stale = warm(block, x)
    for kind in optimizers * 2:
        with torch.enable_grad():
            fused_step(block, x, kind, lr=0.01)
        assert_fresh(block, x, stale)
        stale = block(x)
        for conv in convs(block):
            conv.weight.data[conv.out_channels // 2] *= -2
        assert_fresh(block, x, stale)


@torch.no_grad()
def test_within_one_autocast(small_model, image):
    """Which keeps its own casts of weights until it is left: of none that our ops read."""
    ek.patch(small_model)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            stale = small_model(image)
            for conv in convs(small_model):
                conv.weight.data[conv.out_channels // 2] *= -1
            for norm in norms(small_model):
                norm.bias.data.add_(0.05)
            found = small_model(image)
            plain = copy.deepcopy(small_model)
            ek.unpatch(plain)
            reference = in_float64(plain, image)
            # bfloat16's own rounding is a hundredth or so.
            assert relative_error(found, reference) <= 0.2 * relative_error(stale, reference)


_SENDER = """
import sys, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=2)
for tensor in torch.load(sys.argv[2]):
    dist.broadcast(tensor, src=0)
dist.barrier()
dist.destroy_process_group()
"""


def test_broadcast_from_another_process(tmp_path: Path, image):
    """A gloo group of two processes; ``p.data`` is what receives, so no version counter moves."""
    model = randomise(python_ref.create("b0", num_classes=100)).eval()
    stale = warm(model, image)
    torch.manual_seed(7)  # else its convolutions may be those that ``model`` has
    sent = randomise(python_ref.create("b0", num_classes=100), seed=7)
    with torch.no_grad():
        torch.save([t.detach() for t in _state(sent)], tmp_path / "weights.pt")
    meeting = str(tmp_path / "meeting")
    sender = subprocess.Popen(
        [sys.executable, "-c", _SENDER, meeting, str(tmp_path / "weights.pt")]
    )
    try:
        torch.distributed.init_process_group(
            "gloo", init_method="file://" + meeting, rank=1, world_size=2
        )
        versions = [t._version for t in _state(model)]
        for tensor in _state(model):
            torch.distributed.broadcast(tensor.data, src=0)
        assert [t._version for t in _state(model)] == versions
        torch.distributed.barrier()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        assert sender.wait(60) == 0
    assert_fresh(model, image, stale)
    with torch.no_grad():
        assert relative_error(model(image), in_float64(sent.eval(), image)) < 1e-4


def _state(model: nn.Module) -> list[Tensor]:
    return list(chain(model.parameters(), model.buffers()))


def test_engines_that_were_chosen_do_not_travel(small_model: nn.Module) -> None:
    """They are functions of this process; on a GPU each block keeps those of its last shapes."""
    ek.patch(small_model)
    runner = next(iter(runners(small_model)))
    runner._engines[("a shape",)] = list(ops.OPS["conv_bias_act"].engines)
    for copied in (copy.deepcopy(small_model), pickle.loads(pickle.dumps(small_model))):
        assert not any(runner._engines for runner in runners(copied))
