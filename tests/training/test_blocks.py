"""Every kind of block in float64: the unpatched block's numbers, and gradients by differences."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call

from effv2_kernels.engines import convolutions, passes
from tests.training.compare import errors, step
from tests.training.kinds import KINDS


@pytest.mark.parametrize("frozen", ["none", "all", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_is_the_unpatched_block(kind: str, frozen: str) -> None:
    module = KINDS[kind].module(seed=1)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in {"none": [], "all": norms, "last": norms[-1:]}[frozen]:
        norm.eval()
    trained = KINDS[kind].trained(copy.deepcopy(module))
    x = KINDS[kind].images(n=5, height=11, width=8)
    exact = step(module, x)
    found = {name.replace("module.", ""): tensor for name, tensor in step(trained, x).items()}
    assert found.keys() == exact.keys()
    wrong = {name: error for name, error in errors(found, exact).items() if not error < 1e-10}
    assert not wrong


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_compiled_passes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "for_map", lambda y: passes.aten)
    test_is_the_unpatched_block(kind, "none")


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    """Of the input and of every parameter; differences of 1e-6 straddle no kink."""
    trained = KINDS[kind].trained(KINDS[kind].module(seed=2))
    names = [name for name, _ in trained.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in trained.parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(7)  # of the drop path
        return functional_call(trained, dict(zip(names, parameters, strict=True)), (x,))

    x = KINDS[kind].images(n=2, height=5, width=4).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *parameters), atol=1e-6, rtol=1e-4, nondet_tol=0.0)


@pytest.mark.parametrize("kind", ["stem", "fused", "mbconv"])
def test_gradcheck_notices_a_wrong_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = convolutions.backward

    def wrong(*arguments):
        dx, dweight = right(*arguments)
        return dx, None if dweight is None else dweight * 1.01

    monkeypatch.setattr(convolutions, "backward", wrong)
    with pytest.raises(GradcheckError):
        test_gradcheck(kind)
