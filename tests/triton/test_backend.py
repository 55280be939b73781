"""``backend="triton"`` where nothing can be launched: reasons, fakes, warming up for a GPU that is
not there."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import effv2_kernels as ek
import python_ref
from effv2_kernels.engines import triton as triton_ops
from effv2_kernels.launch import off_tables, switched_off, targets
from effv2_kernels.launch.native import expand_depthwise
from effv2_kernels.launch.off_tables import Entry
from python_ref.variants import Stage, Variant
from tests.ops.cases import OPS, arguments, engine, mapped, ordered, plain

TINY = Variant(
    name="tiny",
    stem=8,
    stages=(
        Stage("fused", 3, 2, 4, 16, 1, 0.0),
        Stage("mbconv", 3, 2, 4, 24, 1, 0.25),
    ),
    head=32,
    dropout=0.0,
    train_size=32,
    eval_size=32,
)
TARGET = targets.KNOWN["sm_90a"]
# The package exports functions of these names.
backends = importlib.import_module("effv2_kernels.patching.backends")
warmup_module = importlib.import_module("effv2_kernels.patching.warmup")
WITHOUT_A_GPU = pytest.mark.skipif(
    torch.cuda.is_available() or triton_ops.interpreted(), reason="Triton runs here"
)
WITH_TRITON = pytest.mark.skipif(bool(triton_ops.missing()), reason="Triton is not installed")


def tiny() -> torch.nn.Module:
    return python_ref.EfficientNet(TINY, num_classes=5).eval().to(torch.bfloat16)


@WITHOUT_A_GPU
def test_an_explicit_request_that_cannot_run_says_why() -> None:
    model = tiny()
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run here: .+"):
        ek.patch(model, backend="triton")
    assert not ek.is_patched(model)
    assert ek.backends()["triton"].reason


def test_a_model_that_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_triton", lambda: ek.BackendStatus(True))
    monkeypatch.setattr(backends.ops, "TRITON_INTERPRETED", False)
    with pytest.raises(RuntimeError, match="cannot run: the model is on cpu"):
        ek.patch(tiny(), backend="triton")
    monkeypatch.setattr(backends.ops, "TRITON_INTERPRETED", True)
    assert backends.choose("triton", torch.device("cpu")) == ("triton", [])


def test_auto_falls_back_from_cuda_to_triton_to_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    no, yes = ek.BackendStatus(False, "no library"), ek.BackendStatus(True, "kernels")
    monkeypatch.setattr(backends, "_cuda", lambda: no)
    monkeypatch.setattr(backends, "_triton", lambda: yes)
    chosen, notes = backends.choose("auto", torch.device("cuda"))
    assert chosen == "triton" and any("no library" in note for note in notes)
    monkeypatch.setattr(backends, "_triton", lambda: ek.BackendStatus(False, "no compiler"))
    chosen, notes = backends.choose("auto", torch.device("cuda"))
    assert chosen == "aten" and any("no compiler" in note for note in notes)


@WITH_TRITON
def test_the_report_names_what_runs() -> None:
    def by_name(op: str, dtype: torch.dtype = torch.bfloat16) -> str:
        return engine(op, arguments(op, dtype=dtype), target=TARGET, by_name=True)

    assert by_name("fused_mbconv") == by_name("depthwise_bias_act") == "triton"
    assert by_name("squeeze_excite_gate") == by_name("fused_mbconv", torch.float64) == "aten"


@WITH_TRITON
@pytest.mark.parametrize("allowed", [True, False])
def test_float32_is_left_to_cudnn_unless_asked_for(allowed: bool, monkeypatch) -> None:
    """Where TF32 is allowed too: Triton's would err three times as much as cuDNN's."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    dense, sliding = arguments("fused_mbconv"), arguments("depthwise_bias_act")
    assert engine("fused_mbconv", dense, target=TARGET) == "aten"
    assert engine("fused_mbconv", dense, target=TARGET, by_name=True) == "triton"
    assert engine("depthwise_bias_act", sliding, target=TARGET, built=False) == "triton"


@pytest.mark.parametrize("namespace", ["effv2", "effv2_triton"])
@pytest.mark.parametrize("op", OPS)
def test_fake_cuda_tensors_have_the_right_shapes_and_strides(op: str, namespace: str) -> None:
    args = arguments(op, dtype=torch.bfloat16, layout="channels_last")
    wanted = plain(op, args)
    with FakeTensorMode():
        fakes = mapped(
            args, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
        )
        found = getattr(getattr(torch.ops, namespace), op).default(*ordered(op, fakes))
    for fake, right in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
        assert fake.shape == right.shape and fake.dtype == right.dtype
        assert fake.device.type == "cuda"
        last = torch.channels_last if right.dim() == 4 else torch.contiguous_format
        assert fake.stride() == torch.empty_like(right, memory_format=last).stride()


@WITH_TRITON
@pytest.mark.skipif(triton_ops.interpreted(), reason="kernels are interpreted")
def test_warmup_compiles_for_a_gpu_that_is_not_there(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("effv2_kernels.ops.NATIVE_OPS", frozenset())  # as without nvcc
    model, seen = tiny(), []
    ek.patch(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count = ek.warmup(
        model,
        [(1, 3, 32, 32), (2, 3, 32, 32)],
        target=targets.KNOWN["sm_90a"],
        processes=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert count >= 6 and seen == [(n, count) for n in range(1, count + 1)]
    names = {path.stem for path in tmp_path.rglob("*.cubin")}
    assert {"fused_mbconv_kernel", "conv_kernel", "depthwise_kernel"} <= names
    assert len(list(tmp_path.rglob("*.cubin"))) == count
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert next(model.parameters()).device.type == "cpu"


@WITH_TRITON
@pytest.mark.skipif(triton_ops.interpreted(), reason="kernels are interpreted")
def test_warmup_leaves_out_what_is_switched_off(monkeypatch, tmp_path) -> None:
    target = targets.KNOWN["sm_90a"]
    model = tiny()
    ek.patch(model)

    def kernels(native: frozenset[str]) -> set[str]:
        switched_off.forget()
        found = warmup_module.launches(model, [(1, 3, 32, 32)], target, native=native)
        return {instance.kernel for instance in found}

    monkeypatch.setenv("EFFV2_TABLES", str(tmp_path))
    try:
        assert "fused_mbconv_kernel" in kernels(frozenset())
        native = frozenset({"expand_depthwise", "depthwise_bias_act"})
        assert "depthwise_kernel" not in kernels(native)
        off = [
            Entry("fused_mbconv", "triton", "bfloat16", (), "slower: 0.8x", "abc123"),
            Entry("expand_depthwise", "cuda", "any", (), "wrong", "abc123"),
            Entry("depthwise_bias_act", "cuda", "any", (), "wrong", "abc123"),
        ]
        off_tables.write(off_tables.path_of(target.name, tmp_path), off)
        assert "fused_mbconv_kernel" not in kernels(frozenset())
        assert "depthwise_kernel" in kernels(native)
    finally:
        switched_off.forget()


@WITH_TRITON
def test_warmup_for_autocast_leaves_norms_as_they_are() -> None:
    """Weights are converted, norms are read in float32."""
    model = python_ref.EfficientNet(TINY, num_classes=5).eval()
    ek.patch(model)
    found = warmup_module.launches(
        model, [(1, 3, 32, 32)], TARGET, dtype=torch.bfloat16, native=frozenset()
    )
    dense = [i for i in found if i.kernel == "conv_kernel" and dict(i.constants)["SPLIT_K"] == 1]
    assert dense
    for instance in dense:
        x, weight, bias, *norm = instance.types[:7]
        assert (x, weight, bias) == ("*bf16", "*bf16", None) and set(norm[:4]) == {"*fp32"}


@WITH_TRITON
@pytest.mark.parametrize("fused", [True, False])
def test_warmup_has_the_halves_of_a_native_op_that_runs_as_two(fused: bool, monkeypatch) -> None:
    """By the launch choice: the expansion is then Triton's."""
    model = tiny()
    ek.patch(model)
    layout = expand_depthwise.ExpandDepthwiseLaunch(4, 4, 2, 32, 1) if fused else None
    monkeypatch.setattr(expand_depthwise, "choose", lambda problem, target: layout)
    native = frozenset({"expand_depthwise", "depthwise_bias_act"})
    sizes, target = [(1, 3, 32, 32)], targets.KNOWN["sm_90a"]
    found = warmup_module.launches(model, sizes, target, dtype=torch.bfloat16, native=native)
    alone = [i for i in found if i.kernel == "conv_kernel" and dict(i.constants)["KH"] == 1]
    expansions = [i for i in alone if dict(i.constants)["ACT"] == "silu"]
    assert bool(expansions) != fused


def test_warmup_says_what_is_missing() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="not patched"):
        ek.warmup(model, [(1, 3, 32, 32)])
    ek.patch(model)
    with pytest.raises(RuntimeError, match="the model is on cpu; give the target"):
        ek.warmup(model, [(1, 3, 32, 32)])


def test_the_package_works_without_triton() -> None:
    """As on a PyTorch for CPUs, where nothing can be imported under that name."""
    program = """
import importlib.util, sys
find = importlib.util.find_spec
sys.modules["triton"] = None
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
import torch, effv2_kernels as ek, python_ref
status = ek.backends()["triton"]
assert not status.available and "not installed" in status.reason, status
model = python_ref.create("efficientnetv2_b0", num_classes=3).eval()
assert ek.patch(model).coverage > 0.99
with torch.no_grad():
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
