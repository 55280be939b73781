"""Training, autograd, autocast, threads, checkpointing, DDP: what else a patched model meets."""

from __future__ import annotations

import copy
import os
import threading

import pytest
import torch
from torch import nn

import effv2_kernels as ek
from tests.support import (
    OurOps,
    assert_as_close_as_pytorch,
    assert_as_close_over,
    draws,
    randomise,
    relative_error,
)


def test_without_training_it_is_the_original(small_model, image):
    """Outputs, gradients and buffers, bit for bit, where the patch is for inference only."""
    for module in small_model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if type(module).__name__ in ("DropPath", "StochasticDepth"):
            module.eval()
            module.train = lambda mode=True, module=module: module  # stays inert
    plain = copy.deepcopy(small_model)
    report = ek.patch(small_model, training=False)
    assert not any(entry.training for entry in report.patched)
    outputs = []
    for model in (plain, small_model):
        model.train()
        torch.manual_seed(5)
        output = model(image)
        output.square().mean().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
    for a, b in zip(plain.parameters(), small_model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(plain.buffers(), small_model.buffers(), strict=True):
        assert torch.equal(a, b)


def test_gradients_in_eval_mode(small_model, image):
    """Frozen statistics, Grad-CAM, adversarial images: autograd is right in eval mode too."""
    plain = copy.deepcopy(small_model)
    ek.patch(small_model)
    exact = copy.deepcopy(plain).double()

    def gradients(model, x):
        x = x.clone().requires_grad_()
        model(x).square().sum().backward()
        return [x.grad, *(p.grad for p in model.parameters())]

    def pooled(found):
        return torch.cat(
            [g.double().flatten() / r.norm() for g, r in zip(found, right, strict=True)]
        )

    right = gradients(exact, image.double())
    found, eager = pooled(gradients(small_model, image)), pooled(gradients(plain, image))
    assert_as_close_as_pytorch(found, eager, pooled(right), factor=3.0)


def test_input_gradient_of_a_frozen_model(small_model, image):
    ek.patch(small_model.requires_grad_(False))
    x = image.clone().requires_grad_()
    small_model(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    with_grad = small_model(image)  # nothing to record: our ops run
    assert not with_grad.requires_grad


def test_the_ops_that_run_are_those_that_the_report_names(small_model, image):
    report = ek.patch(small_model)
    with torch.no_grad():
        for _ in range(3):
            with OurOps() as ours:
                small_model(image)
            assert ours.names == [op.split("[")[0] for entry in report.patched for op in entry.ops]
    assert ours.names[0] == "stem" and ours.names[-1] == "conv_act_pool"


def test_our_ops_run_only_where_they_may(small_model, image):
    def ours(run) -> list[str]:
        with OurOps() as ours:
            run()
        return ours.names

    report = ek.patch(small_model)
    with torch.no_grad():
        assert ours(lambda: small_model(image))
    inference = {op.split("[")[0] for entry in report.patched for op in entry.ops}
    trained = {entry.training for entry in report.patched}
    assert inference & set(ours(lambda: small_model(image))) == set()  # autograd records
    small_model.train()
    with torch.no_grad():
        assert trained == set(ours(lambda: small_model(image)))
    ek.patch(small_model, training=False)
    assert not ours(lambda: small_model(image))
    small_model.eval()
    ek.unpatch(small_model)
    with torch.no_grad():
        assert not ours(lambda: small_model(image))


def test_one_module_in_training_mode_is_enough(small_model, image):
    """Monte-Carlo dropout and frozen norms switch single modules."""
    ek.patch(small_model)
    norms = [m for m in small_model.modules() if isinstance(m, nn.BatchNorm2d)]
    norms[5].train()
    before = norms[5].running_mean.clone()
    with torch.no_grad():
        small_model(image)
    assert not torch.equal(norms[5].running_mean, before)


def test_a_norm_that_lost_its_statistics(small_model, image):
    """It normalises with those of the batch, which cannot be folded."""
    ek.patch(small_model)
    with torch.no_grad():
        folded = small_model(image)
        norm = [m for m in small_model.modules() if isinstance(m, nn.BatchNorm2d)][5]
        norm.running_mean = norm.running_var = None
        found = small_model(image)
        ek.unpatch(small_model)
        assert relative_error(found, small_model(image)) < 1e-4 < relative_error(found, folded)


def test_onednn_switched_off():
    """Weights that are packed for it already are not used."""
    import python_ref

    block = randomise(python_ref.create("b0")).eval().stages[1][0]
    x = torch.randn(1, block.expand.conv.in_channels, 9, 9)
    ek.patch(block)
    with torch.no_grad():
        packed = [block(x) for _ in range(3)][-1]
        with torch.backends.mkldnn.flags(enabled=False), torch.autograd.profiler.profile() as seen:
            plain = block(x)
    assert relative_error(plain, packed) < 1e-5
    names = {event.name for event in seen.function_events}
    assert "effv2::fused_mbconv" in names and not any(name.startswith("mkldnn::") for name in names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, small_model, image):
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        assert_as_close_over(draws(small_model, image, ek.patch, calls=3))
        assert small_model(image).dtype == dtype
    with torch.no_grad():
        assert small_model(image).dtype == torch.float32


@pytest.mark.parametrize("index", [2, 6])
def test_a_block_under_autocast_promotes_as_pytorch_does(index, image):
    import python_ref

    model = python_ref.create("b0").eval()
    block = [m for m in model.stages.modules() if getattr(m, "has_skip", False)][index]
    x = torch.randn(1, block.project.conv.out_channels, 9, 9)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        eager = block(x)
        ek.patch(model)
        found = block(x)
    assert found.dtype == eager.dtype
    assert relative_error(found, eager) < 0.02


def test_inference_mode_and_no_grad_take_turns(small_model, image):
    ek.patch(small_model)
    outputs = []
    for guard in (torch.inference_mode, torch.no_grad) * 3:
        with guard():
            outputs.append(small_model(image).clone())
    small_model.requires_grad_(False)
    outputs.append(small_model(image))
    assert all(relative_error(o, outputs[0]) < 1e-5 for o in outputs)


def test_threads(small_model, image):
    ek.patch(small_model)
    with torch.no_grad():
        expected = small_model(image)
    ek.refresh(small_model)
    failures: list[str] = []

    def work() -> None:
        with torch.no_grad():
            for _ in range(4):
                if not relative_error(small_model(image), expected) < 1e-5:
                    failures.append("differs")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_checkpointing(small_model, image):
    from torch.utils.checkpoint import checkpoint

    plain = copy.deepcopy(small_model)
    ek.patch(small_model)
    results = []
    for model in (plain, small_model):
        x = image.clone().requires_grad_()
        checkpoint(model, x, use_reentrant=False).sum().backward()
        results.append(x.grad)
    assert relative_error(*results) < 1e-4


def test_timm_grad_checkpointing_flag(image):
    timm = pytest.importorskip("timm", reason="timm is an extra")
    model = timm.create_model("tf_efficientnetv2_b0").eval()
    model.set_grad_checkpointing()
    with torch.no_grad():
        expected = model(image)
    ek.patch(model)
    with torch.no_grad():
        assert relative_error(model(image), expected) < 1e-4
    model.train()(image).sum().backward()


def test_distributed_data_parallel(small_model, image):
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ["MASTER_PORT"] = str(29500 + os.getpid() % 1000)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    try:
        plain = copy.deepcopy(small_model)
        ek.patch(small_model)
        parallel = nn.parallel.DistributedDataParallel(small_model)
        with torch.no_grad():
            assert relative_error(parallel(image), plain(image)) < 1e-4
        parallel.train()
        parallel(image).square().mean().backward()
        assert all(p.grad is not None for p in small_model.parameters())
        parallel.eval()
        ek.unpatch(plain.load_state_dict(small_model.state_dict()) and plain)
        with torch.no_grad():
            assert relative_error(parallel(image), plain(image)) < 1e-4
    finally:
        torch.distributed.destroy_process_group()


def test_functorch_and_forward_mode(small_model, image):
    """Transforms see the original forward."""
    plain = copy.deepcopy(small_model)
    ek.patch(small_model)
    images = image.unsqueeze(1)
    with torch.no_grad():
        expected = torch.vmap(plain)(images)
        assert relative_error(torch.vmap(small_model)(images), expected) < 1e-4
        tangent = torch.randn_like(image)
        _, a = torch.func.jvp(plain, (image,), (tangent,))
        _, b = torch.func.jvp(small_model, (image,), (tangent,))
    assert relative_error(b, a) < 1e-4


def test_functional_call_uses_the_given_weights(small_model, image):
    ek.patch(small_model)
    with torch.no_grad():
        small_model(image)
        plain = copy.deepcopy(small_model)
        ek.unpatch(plain)
        weights = {k: v * 1.01 for k, v in plain.state_dict().items() if v.is_floating_point()}
        found = torch.func.functional_call(small_model, weights, (image,))
        expected = torch.func.functional_call(plain, weights, (image,))
        assert relative_error(found, expected) < 1e-4
        assert relative_error(small_model(image), plain(image)) < 1e-4


@pytest.mark.parametrize("wrong", ["rank", "channels", "dtype", "device"])
def test_wrong_input_raises_one_clear_error(wrong, small_model):
    ek.patch(small_model)
    x, message = {
        "rank": (torch.randn(3, 5), r"4D|3D \(unbatched\) or 4D"),
        "channels": (torch.randn(1, 4, 33, 33), "effv2::stem: .* takes 3 channels"),
        "dtype": (torch.randn(1, 3, 33, 33, dtype=torch.float64), "expected scalar type Double"),
        "device": (torch.randn(1, 3, 33, 33, device="meta"), "meta"),
    }[wrong]
    with torch.no_grad(), pytest.raises((RuntimeError, NotImplementedError), match=message):
        small_model(x)


def test_replicas_of_data_parallel_serve_themselves(small_model, image):
    """As ``nn.DataParallel`` makes them: a module's attributes copied, its tensors set anew."""
    plain = copy.deepcopy(small_model)
    ek.patch(small_model)

    def replicas(model):
        copies = {m: m._replicate_for_data_parallel() for m in model.modules()}
        for module, replica in copies.items():
            for name, child in module._modules.items():
                replica._modules[name] = copies[child]
            for name, parameter in module._parameters.items():
                if parameter is None:
                    replica._parameters[name] = None
                else:
                    setattr(replica, name, parameter.detach() * 1.5)
            replica._buffers.update(module._buffers)
        return copies[model]

    with torch.no_grad():
        expected = replicas(plain)(image)
        assert relative_error(replicas(small_model)(image), expected) < 1e-4
        assert relative_error(small_model(image), plain(image)) < 1e-4


def test_jit_trace(small_model, image):
    """The original forward is traced: folded weights would be constants of the trace."""
    plain = copy.deepcopy(small_model)
    ek.patch(small_model)
    with torch.no_grad():
        traced = torch.jit.trace(small_model, image)
        assert relative_error(traced(image), plain(image)) < 1e-4
        for norm in (m for m in small_model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.mul_(1.05)
        assert relative_error(traced(image), small_model(image)) < 1e-4


def test_an_empty_batch(small_model):
    ek.patch(small_model)
    with torch.no_grad():
        assert small_model(torch.randn(0, 3, 33, 33)).shape == (0, 100)


def test_fake_tensors_on_a_gpu(image):
    """Shapes, dtypes and ops for CUDA tensors, without a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    import python_ref

    default = torch.get_default_dtype()
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = python_ref.create("s", num_classes=10).eval()
        finally:
            torch.set_default_dtype(default)
        report = ek.patch(model)
        assert report.backend in ("cuda", "triton", "aten") and report.coverage > 0.99
        x = torch.empty(2, 3, 64, 97, dtype=torch.bfloat16)
        features = model.forward_features(x)
        assert features.shape == (2, 1280, 2, 4)
        assert features.is_contiguous(memory_format=torch.channels_last)
        output = model(x)
    assert output.shape == (2, 10) and output.device.type == "cuda"
    assert output.dtype == torch.bfloat16
