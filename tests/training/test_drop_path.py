"""Drop path in training: the library's own numbers, in the order in which it draws them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from effv2_kernels.blocks import Block
from effv2_kernels.running.training import _drop_path
from tests.support import relative_error
from tests.training.compare import step
from tests.training.small import (
    LIBRARIES,
    assert_same,
    assert_steps_as,
    block,
    images,
    maps,
    network,
    our_ops,
    patched,
)

_NAMES = ("DropPath", "StochasticDepth")


def drop_paths(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m).__name__ in _NAMES]


def _next_number(model: nn.Module, x: Tensor, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    found = step(model, x, seed=seed)
    return found, torch.rand(())


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_same_numbers(library: str) -> None:
    """And the random stream is at the same place afterwards."""
    plain = network(library, drop_path=0.7)
    assert drop_paths(plain)
    ours = patched(plain)
    outputs = []
    for seed in range(3):
        found, ours_next = _next_number(ours, images(5), seed)
        right, theirs_next = _next_number(plain, images(5), seed)
        assert torch.equal(ours_next, theirs_next)
        assert_same(found, right)
        outputs.append(right["output"])
    assert not torch.equal(outputs[0], outputs[1])
    assert len(our_ops(lambda: ours(images()))) == 8


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float32, False),
        (torch.bfloat16, False),
        (torch.bfloat16, True),
        (torch.float16, True),
    ],
)
@pytest.mark.parametrize("library", LIBRARIES)
def test_in_other_dtypes(library: str, dtype: torch.dtype, autocast: bool) -> None:
    """Which draw other numbers. Rounding is far below what other numbers change."""
    own = torch.float32 if autocast else dtype
    plain, x = network(library, drop_path=0.7).to(own), images(5).to(own)
    ours = patched(plain)
    outputs: dict[tuple[str, int], Tensor] = {}
    for seed in range(3):
        places = []
        for name, model in (("theirs", plain), ("ours", ours)):
            with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
                torch.manual_seed(seed)
                outputs[name, seed] = model(x)
            places.append(torch.rand(()))
        assert torch.equal(*places)
    for seed in range(3):
        right = outputs["theirs", seed]
        other = relative_error(outputs["theirs", (seed + 1) % 3], right)
        assert relative_error(outputs["ours", seed], right) < 0.1 * other


@pytest.mark.parametrize("library", LIBRARIES)
def test_in_evaluation_in_a_training_model(library: str) -> None:
    """It draws nothing then."""
    plain = network(library, drop_path=0.7)
    for path in drop_paths(plain):
        path.eval()
    ours = patched(plain)
    found, place = _next_number(ours, images(), 0)
    right, expected = _next_number(plain, images(), 0)
    assert torch.equal(place, expected)
    assert_same(found, right)
    assert len(our_ops(lambda: ours(images()))) == 8


@pytest.mark.parametrize("library", LIBRARIES)
def test_in_training_in_a_model_in_evaluation(library: str) -> None:
    """As for several samples of one network's depth."""
    plain = network(library, drop_path=0.7)
    ours = patched(plain)
    for model in (plain, ours):
        model.eval()
        for path in drop_paths(model):
            path.train()
    assert_steps_as(plain, ours, images(), steps=3)
    with torch.no_grad():
        torch.manual_seed(0)
        found = ours(images())
        torch.manual_seed(0)
        torch.testing.assert_close(found, plain(images()), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_rate_set_later_counts(library: str) -> None:
    plain = network(library, drop_path=0.2)
    ours = patched(plain)
    for model in (plain, ours):
        for path in drop_paths(model):
            for name in ("drop_prob", "p", "rate"):
                if hasattr(path, name):
                    setattr(path, name, 0.9)
    assert_steps_as(plain, ours, images(5), steps=2)


@pytest.mark.parametrize("kind", ["mbconv", "fused"])
def test_every_image_dropped(kind: str) -> None:
    """The block is the identity then, in its gradient too, and its norms have seen the batch."""
    plain = block(kind, drop_path=0.999999)
    ours = patched(plain)
    assert_same(step(ours, maps()), right := step(plain, maps()))
    assert torch.equal(right["output"], maps())
    assert not right["d project.bn.weight"].any()


def test_unscaled_and_by_batch() -> None:
    """timm can leave the scale out, torchvision can drop the batch as one."""
    timm, torchvision = network("timm", 0.7), network("torchvision", 0.7)
    for path in drop_paths(timm):
        path.scale_by_keep = False
    for path in drop_paths(torchvision):
        path.mode = "batch"
    for plain in (timm, torchvision):
        assert_steps_as(plain, patched(plain), images(5), steps=3)


def test_what_it_draws_is_of_each_image() -> None:
    ours = patched(block(drop_path=0.5))
    described: Block = ours.forward.trainer.block
    mask = _drop_path(described, maps(64))
    assert mask is not None and mask.shape == (64,) and mask.dtype == torch.float64
    assert set(mask.tolist()) == {0.0, 2.0}
    assert _drop_path(copy.deepcopy(ours).eval().forward.trainer.block, maps()) is None
