"""Batch norms in training: which statistics they take, which buffers they move, and how far."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.support import rms
from tests.training.compare import errors, step
from tests.training.small import (
    LIBRARIES,
    assert_all_close,
    assert_steps_as,
    batch_norms,
    block,
    images,
    maps,
    network,
    our_ops,
    patched,
)


@pytest.mark.parametrize("momentum", [0.1, 0.37, 1.0, 0.0, None])
@pytest.mark.parametrize("library", LIBRARIES)
def test_buffers_after_several_steps(library: str, momentum: float | None) -> None:
    """None: the mean of all batches so far."""
    plain = network(library)
    for norm in batch_norms(plain):
        norm.momentum = momentum
        if momentum is None:
            norm.reset_running_stats()
    ours = patched(plain)
    before = [norm.running_var.clone() for norm in batch_norms(plain)]
    for i in range(4):
        for model in (plain, ours):
            model(images(seed=i) * (1 + i))
    # Before the counter moves again.
    for norm, own, old in zip(batch_norms(plain), batch_norms(ours), before, strict=True):
        assert own.num_batches_tracked == norm.num_batches_tracked == 4
        for found, right in (
            (own.running_mean, norm.running_mean),
            (own.running_var, norm.running_var),
        ):
            torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-14)
        assert torch.equal(own.running_var, old) == (momentum == 0.0)


def test_the_variance_that_is_kept_is_unbiased() -> None:
    one = block("fused", se_hidden=0)
    for norm in batch_norms(one):
        norm.momentum = 1.0
    seen: list[Tensor] = []
    with one.expand.conv.register_forward_hook(lambda conv, args, out: seen.append(out)):
        copy.deepcopy(one)(maps(2))
    ours = patched(one)
    ours(maps(2))
    variance = seen[0].var((0, 2, 3), correction=1)
    torch.testing.assert_close(ours.expand.bn.running_var, variance, rtol=1e-12, atol=0.0)


def test_without_a_counter() -> None:
    plain = block()
    for norm in batch_norms(plain):
        norm.num_batches_tracked = None
    assert_steps_as(plain, patched(plain), maps(), steps=2)


def test_a_momentum_set_later_counts() -> None:
    plain = block()
    ours = patched(plain)
    assert_steps_as(plain, ours, maps())
    for model in (plain, ours):
        for norm in batch_norms(model):
            norm.momentum, norm.eps = 0.4, 0.03
    assert_steps_as(plain, ours, maps(), steps=2)


def _error(run: Callable[[], object]) -> tuple[type, str]:
    with pytest.raises(ValueError) as caught:
        run()
    return caught.type, str(caught.value)


@pytest.mark.parametrize("kind", ["mbconv", "fused"])
def test_one_value_a_channel(kind: str) -> None:
    """PyTorch's own error; the same norms in evaluation take it."""
    plain = block(kind)
    ours = patched(plain)
    x = maps(1)[:, :, :1, :1]
    found = _error(lambda: ours(x))
    assert found == _error(lambda: plain(x))
    assert "Expected more than 1 value per channel" in found[1]
    for model in (plain, ours):
        for norm in batch_norms(model):
            norm.eval()
    assert_steps_as(plain, ours, x)
    assert our_ops(lambda: ours(x))


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_value_a_channel_in_a_network(library: str) -> None:
    """Where the map shrinks to one pixel on the way, what came before has moved its buffers."""
    plain = network(library)
    ours = patched(plain)
    x = images(1)[:, :, :5, :5]
    assert _error(lambda: ours(x)) == _error(lambda: plain(x))
    for found, right in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-14)


def test_an_empty_batch() -> None:
    """Whatever the unpatched norm makes of no values."""
    plain = block()
    ours = patched(plain)
    x = maps()[:0]
    assert ours(x).shape == plain(x).shape
    for found, right in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, right, equal_nan=True)


def _some(norms: list[nn.BatchNorm2d]) -> list[nn.BatchNorm2d]:
    return norms[::2]


def _all(norms: list[nn.BatchNorm2d]) -> list[nn.BatchNorm2d]:
    return norms


@pytest.mark.parametrize("which", [_some, _all])
@pytest.mark.parametrize("library", LIBRARIES)
def test_frozen_norms(library: str, which: Callable) -> None:
    """In a model that trains: a common recipe of fine-tuning. Frozen before the patch or after."""
    plain = network(library)
    for norm in which(batch_norms(plain)):
        norm.eval()
    ours = patched(plain)
    assert_steps_as(plain, ours, images(), steps=2)
    assert not {name for name in our_ops(lambda: ours(images())) if "train" not in name}
    for model in (plain, ours):
        model.load_state_dict(plain.state_dict())
        model.train()
        for norm in which(batch_norms(model)[1:]):
            norm.eval()
    assert_steps_as(plain, ours, images(), steps=2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("library", LIBRARIES)
def test_statistics_no_longer_tracked(library: str, training: bool) -> None:
    """In training, the batch's, and no buffer moves; in evaluation, those that are there."""
    plain = network(library)
    ours = patched(plain)
    for model in (plain, ours):
        model.train(training)
        for norm in batch_norms(model):
            norm.track_running_stats = False
    before = {name: buffer.clone() for name, buffer in ours.named_buffers()}
    assert_steps_as(plain, ours, images(), steps=2)
    assert all(torch.equal(buffer, before[name]) for name, buffer in ours.named_buffers())
    assert len(our_ops(lambda: ours(images()))) == 8


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("library", LIBRARIES)
def test_statistics_taken_away(library: str, training: bool) -> None:
    plain = network(library)
    ours = patched(plain)
    for model in (plain, ours):
        model.train(training)
        for norm in batch_norms(model)[1::2]:
            norm.running_mean = norm.running_var = None
    assert_steps_as(plain, ours, images(), steps=2)
    assert len(our_ops(lambda: ours(images()))) == 8


@pytest.mark.parametrize("library", LIBRARIES)
def test_evaluation_with_gradients(library: str) -> None:
    plain = network(library).eval()
    ours = patched(plain)
    assert_steps_as(plain, ours, images(), steps=2)
    assert len(our_ops(lambda: ours(images()))) == 8


def test_gradients_in_evaluation_outlive_statistics_that_move() -> None:
    """A forward in evaluation, one in training, then the backward of both, as PyTorch allows; it
    is the gradient at the statistics of the first."""
    plain = block()
    ours = patched(plain)
    right = _gradients(plain, plain.eval()(maps()))
    first = ours.eval()(maps())
    ours.train()(maps(seed=8))
    found = _gradients(ours, first)
    assert_all_close(found, right)


def _gradients(model: nn.Module, out: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out.square().sum(), list(model.parameters())))


@pytest.mark.parametrize("affine", ["none", "gamma", "beta"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["mbconv", "fused"])
def test_norms_without_affine(kind: str, training: bool, affine: str) -> None:
    """Or with one half of it."""
    plain = block(kind)
    for norm in batch_norms(plain)[1:]:
        if affine != "gamma":
            norm.weight = None
        if affine != "beta":
            norm.bias = None
        norm.affine = False
    plain.train(training)
    ours = patched(plain)
    assert_steps_as(plain, ours, maps(), steps=2)
    assert len(our_ops(lambda: ours(maps()))) == 1


@pytest.mark.parametrize("kind", ["mbconv", "fused"])
def test_convolutions_with_biases(kind: str) -> None:
    """Which a norm of the batch undoes, but which move its mean."""
    plain = block(kind)
    for part in (plain.expand, plain.depthwise if kind == "mbconv" else None, plain.project):
        if part is not None:
            part.conv.bias = nn.Parameter(torch.randn(part.conv.out_channels).double())
    for frozen in (False, True):
        batch_norms(plain)[1].train(not frozen)
        ours = patched(plain)
        assert_steps_as(plain, ours, maps(), steps=2)
        assert len(our_ops(lambda ours=ours: ours(maps()))) == 1


def _in_16_bits(model: nn.Module, dtype: torch.dtype, norms: torch.dtype) -> nn.Module:
    model = model.to(dtype)
    for norm in batch_norms(model):
        norm.to(norms)
    return model


@pytest.mark.parametrize("norms", [torch.float32, None], ids=["float32 norms", "all of it"])
@pytest.mark.parametrize("frozen", [False, True], ids=["training", "frozen"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_bfloat16(library: str, frozen: bool, norms: torch.dtype | None) -> None:
    """Dtypes as PyTorch's; errors pooled over all tensors and over networks, against PyTorch's."""
    dtype = torch.bfloat16
    pooled: list[list[float]] = [[], []]
    for seed in range(3):
        plain = _in_16_bits(network(library, seed=seed), dtype, norms or dtype).train(not frozen)
        x = images(seed=seed).to(dtype)
        exact = step(copy.deepcopy(plain).double(), x.double())
        ours = patched(plain)
        assert len(our_ops(lambda ours=ours, x=x: copy.deepcopy(ours)(x))) == 8
        found, eager = step(ours, x), step(plain, x)
        assert found.keys() == eager.keys() == exact.keys()
        assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in eager.items()}
        for worst, one in zip(pooled, (found, eager), strict=True):
            worst += errors(one, exact).values()
    assert rms(pooled[0]) <= 1.5 * rms(pooled[1])


def test_dtypes_that_do_not_agree() -> None:
    """What PyTorch does with them, its error too."""
    plain = block()
    plain.expand.bn.float()
    ours = patched(plain)
    messages = []
    for model in (plain, ours):
        with pytest.raises(RuntimeError) as caught:
            model(maps())
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
