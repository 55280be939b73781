"""The same weights give the same numbers as timm and torchvision, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import python_ref
from python_ref import weights

timm = pytest.importorskip("timm", reason="timm is the network that python_ref is compared with")
torchvision = pytest.importorskip("torchvision", reason="torchvision is compared with python_ref")

V1 = [f"b{i}" for i in range(8)]
TIMM = {
    **{f"efficientnetv2_{v}": f"efficientnetv2_{v}" for v in ("s", "m", "l", "xl")},
    **{f"tf_efficientnetv2_{v}": f"efficientnetv2_{v}" for v in ("s", "m", "l", "xl")},
    **{f"tf_efficientnetv2_{v}": f"efficientnetv2_{v}" for v in V1[:4]},
    **{f"efficientnet_{v}": f"efficientnet_{v}" for v in V1},
    **{f"tf_efficientnet_{v}": f"efficientnet_{v}" for v in V1},
}
TORCHVISION = {
    **{f"efficientnet_v2_{v}": f"efficientnetv2_{v}" for v in ("s", "m", "l")},
    **{f"efficientnet_{v}": f"efficientnet_{v}" for v in V1},
}
CASES = [("timm", name) for name in TIMM] + [("torchvision", name) for name in TORCHVISION]
# From stage to stage 33 stays odd, 64 stays even, 38 and 50 alternate.
SIZES = [(33, 50), (38, 64)]


def make_peer(library: str, name: str, **kwargs: float) -> nn.Module:
    if library == "timm":
        return timm.create_model(name, **kwargs)
    return torchvision.models.get_model(name, **kwargs)


def make_pair(library, name, randomise, **peer_kwargs) -> tuple[nn.Module, nn.Module]:
    """The peer with random weights, and ours with the same ones, both in float64. Built on the meta
    device: neither library's initialisation is of interest here."""
    canonical = (TIMM if library == "timm" else TORCHVISION)[name]
    with torch.device("meta"):
        peer = make_peer(library, name, **peer_kwargs)
        bn = next(m for m in peer.modules() if isinstance(m, nn.BatchNorm2d))
        ours = python_ref.create(
            canonical,
            padding="same" if name.startswith("tf_") else "symmetric",
            bn_eps=bn.eps,
            bn_momentum=bn.momentum,
            drop_path=0.0,
            dropout=0.0,
        )
    peer = randomise(peer.double().to_empty(device="cpu"))
    ours = ours.double().to_empty(device="cpu")
    for tensor in ours.state_dict().values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    weights.load(ours, peer.state_dict())
    return peer, ours


@pytest.mark.parametrize(("library", "name"), CASES, ids=[f"{lib}-{name}" for lib, name in CASES])
@torch.no_grad()
def test_outputs_in_eval_mode(library, name, randomise, relative_error):
    peer, ours = make_pair(library, name, randomise)
    peer.eval()
    ours.eval()
    for size in SIZES:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        want = peer(x)
        assert relative_error(want[:1], want[1:]) > 1e-3, "an output that the image hardly moves"
        assert relative_error(ours(x), want) < 1e-9, size


TRAINED = [
    ("timm", "efficientnetv2_s"),
    ("timm", "tf_efficientnetv2_b0"),
    ("timm", "tf_efficientnetv2_b3"),
    ("timm", "efficientnet_b0"),
    ("timm", "tf_efficientnet_b1"),
    ("torchvision", "efficientnet_v2_s"),
    ("torchvision", "efficientnet_b0"),
]


@pytest.mark.parametrize(("library", "name"), TRAINED, ids=[f"{a}-{b}" for a, b in TRAINED])
def test_outputs_gradients_and_buffers_in_train_mode(library, name, randomise, relative_error):
    off = {} if library == "timm" else {"stochastic_depth_prob": 0.0, "dropout": 0.0}
    peer, ours = make_pair(library, name, randomise, **off)
    # Batch 4: at the last stage's few pixels, smaller batches leave batch norm ill conditioned.
    x = torch.randn(4, 3, 64, 65, dtype=torch.float64)
    cotangent = torch.randn(4, 1000, dtype=torch.float64)
    results = []
    for model in (peer, ours):
        model.train()
        image = x.clone().requires_grad_()
        output = model(image)
        output.backward(cotangent)
        results.append((output.detach(), image.grad))
    (want, want_dx), (got, got_dx) = results
    assert relative_error(got, want) < 1e-9
    assert relative_error(got_dx, want_dx) < 1e-9

    rename = weights.from_timm if library == "timm" else weights.from_torchvision
    tensors = rename(ours, peer.state_dict(keep_vars=True))
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, tensors[name].grad) < 1e-9, name
    for name, buffer in ours.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert buffer == tensors[name], name
        else:
            assert relative_error(buffer, tensors[name]) < 1e-9, name


@torch.no_grad()
def test_epsilon_matters(randomise, relative_error):
    """The comparison above would notice the wrong batch-norm epsilon."""
    peer, ours = make_pair("timm", "tf_efficientnetv2_b0", randomise)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    assert relative_error(ours.eval()(x), peer.eval()(x)) > 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("size", "equal"), [(33, True), (64, False)])
def test_paddings_agree_exactly_on_odd_sizes(size, equal, randomise, relative_error):
    """V2 has 3x3 kernels only: SAME is symmetric padding as long as every stage's size is odd."""
    _, symmetric = make_pair("timm", "efficientnetv2_s", randomise)
    same = python_ref.create("s", padding="same", bn_eps=1e-5).double()
    same.load_state_dict(symmetric.state_dict())
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    error = relative_error(same.eval()(x), symmetric.eval()(x))
    assert (error < 1e-12) == equal
