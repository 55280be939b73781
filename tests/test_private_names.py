"""The private names of PyTorch that the package uses exist in the one that is installed:
``.ci/run`` installs 2.11 and the newest, EFFV2_TORCH_MATRIX=1 others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from effv2_kernels import _torch

PACKAGE = Path(_torch.__file__).parent
#: What names a private part of PyTorch; comments and texts do not.
PRIVATE = re.compile(
    r"torch\._\w+|\b_C\b|\bforward_ad\._|\bmkldnn\._|\bautograd\._|\butils\._\w+|\b_subclasses\b"
    r"|\b_pytree\b|\bnn_module\._"
)


def test_they_are_named_in_one_place() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if PRIVATE.search(line.partition("#")[0]) and "``" not in line and '"' not in line
    }
    assert found == {"_torch.py"}


@torch.no_grad()
def test_each_does_what_it_is_used_for() -> None:
    x = torch.randn(2, 3)
    assert not _torch.is_transformed() and not _torch.is_watched()
    assert torch.func.vmap(lambda row: row * _torch.is_transformed())(x).equal(x)
    with torch.autograd.forward_ad.dual_level():
        assert _torch.in_forward_mode() and _torch.is_transformed()
    with torch.autograd.profiler.profile():
        assert _torch.is_watched()
    with _torch.below_autograd():
        torch.ones(2) + 1
    with torch.autocast("cpu", torch.bfloat16), _torch.below_autocast("CPU")():
        assert torch.nn.functional.linear(x, torch.randn(4, 3)).dtype == torch.float32
    assert not _torch.is_one_of_many(x)
    assert _torch.onednn_enabled() == torch.backends.mkldnn.enabled
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert any(_torch.GLOBAL_HOOKS)
    handle.remove()
    assert not any(_torch.GLOBAL_HOOKS)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@torch.no_grad()
def test_onednn() -> None:
    x, weight = torch.randn(1, 8, 5, 5), torch.randn(16, 8, 3, 3)
    geometry = [1, 1], [1, 1], [1, 1], 1
    packed = _torch.onednn_pack(weight, *geometry, [1, 8, 5, 5])
    found = _torch.onednn_conv().default(x, packed, None, *geometry, "none", [], "")
    torch.testing.assert_close(found, torch.nn.functional.conv2d(x, weight, padding=1))
    rows, matrix = torch.randn(5, 3), torch.randn(3, 4)
    torch.testing.assert_close(_torch.onednn_linear(rows, matrix.t()), rows @ matrix)
    assert all(isinstance(_torch.onednn_has(d), bool) for d in (torch.bfloat16, torch.float16))
