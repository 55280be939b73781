"""``torch.compile(fullgraph=True)`` and ``torch.export`` of patched models, dynamic sizes."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import effv2_kernels as ek
from tests.support import randomise, relative_error

EXPECTED_OPS = {
    "stem",
    "conv_bias_act",
    "fused_mbconv",
    "expand_depthwise",
    "squeeze_excite_gate",
    "gated_project",
    "conv_act_pool",
}


def _v2_s(library: str) -> torch.nn.Module:
    if library == "python_ref":
        import python_ref

        return python_ref.create("s", num_classes=10)
    if library == "timm":
        timm = pytest.importorskip("timm", reason="timm is an extra")
        return timm.create_model("tf_efficientnetv2_s", num_classes=10)
    models = pytest.importorskip("torchvision.models", reason="torchvision is an extra")
    return models.efficientnet_v2_s(num_classes=10)


@pytest.fixture(params=["python_ref", "timm", "torchvision"])
def v2_s(request) -> torch.nn.Module:
    torch._dynamo.reset()
    model = randomise(_v2_s(request.param)).eval()
    ek.patch(model)
    return model


def test_fullgraph_with_dynamic_sizes(v2_s):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(v2_s, fullgraph=True, backend=counter)
    with torch.no_grad():
        for count, shape in enumerate(
            [(2, 3, 33, 48), (3, 3, 50, 65), (4, 3, 64, 64), (5, 3, 97, 40), (2, 3, 41, 90)]
        ):
            x = torch.randn(shape)
            assert relative_error(compiled(x), v2_s(x)) < 1e-4
            assert counter.frame_count <= min(count + 1, 2), "recompiled after the second size"


@pytest.fixture
def tiny() -> torch.nn.Module:
    """Every kind of block, few of each: what these tests look for does not grow with depth."""
    timm = pytest.importorskip("timm", reason="timm is an extra")
    torch._dynamo.reset()
    model = randomise(timm.create_model("test_efficientnet", num_classes=10)).eval()
    assert ek.patch(model).coverage > 0.9
    return model


def test_a_compiled_model_is_never_stale(tiny):
    compiled = torch.compile(tiny, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        before = compiled(x)
        norms = [m for m in tiny.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        norms[-1].weight.data.mul_(1.5)
        norms[-2].running_mean.data.add_(0.5)
        after = compiled(x)
        assert relative_error(after, tiny(x)) < 1e-4
        assert relative_error(after, before) > 1e-2


def test_modes_switch_under_compile(tiny):
    compiled = torch.compile(tiny, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        assert relative_error(compiled(x), tiny(x)) < 1e-4
    tiny.train()
    before = [b.clone() for name, b in tiny.named_buffers() if name.endswith("running_mean")]
    compiled(x).square().mean().backward()
    gradients = [p.grad for p in tiny.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    after = [b for name, b in tiny.named_buffers() if name.endswith("running_mean")]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_export_with_dynamic_sizes(v2_s):
    batch = torch.export.Dim("batch", min=1, max=64)
    height, width = (torch.export.Dim(n, min=33, max=1024) for n in ("height", "width"))
    program = torch.export.export(
        v2_s, (torch.randn(2, 3, 48, 65),), dynamic_shapes=({0: batch, 2: height, 3: width},)
    )
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    found = {target.split(".")[1] for target in targets if target.startswith("effv2.")}
    assert found == EXPECTED_OPS
    assert not any("conv2d" in t or "batch_norm" in t for t in targets)
    module = program.module()
    for shape in ((2, 3, 48, 65), (1, 3, 33, 97), (5, 3, 64, 50)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_error(module(x), v2_s(x)) < 1e-4
    assert module(torch.randn(1, 3, 40, 40)).shape == (1, 10)  # where autograd is on, too


def test_inductor(tiny):
    """The default backend: the ops' strides are what their fakes say."""
    compiled = torch.compile(tiny, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3, 65, 78), (3, 3, 48, 40)):
            x = torch.randn(shape)
            assert relative_error(compiled(x), tiny(x)) < 1e-4


@pytest.mark.parametrize("change", ["convolution", "norm mode"])
def test_a_compiled_model_notices_its_modules(change, tiny):
    """As without the patch: a replaced module or another mode is another graph."""
    compiled = torch.compile(tiny, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 40, 40)
    block = tiny.blocks[2][0]
    with torch.no_grad():
        before = compiled(x)
        if change == "convolution":
            block.conv_exp = torch.nn.Conv2d(
                block.conv_exp.in_channels,
                block.conv_exp.out_channels,
                block.conv_exp.kernel_size,
                block.conv_exp.stride,
                block.conv_exp.padding,
                bias=False,
            )
        else:
            block.bn1.train()
        after = compiled(x)
        assert relative_error(after, before) > 1e-3
        if change == "convolution":
            assert relative_error(after, tiny(x)) < 1e-4
