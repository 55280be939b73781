"""Patched models take our ops on CUDA tensors: seen without a GPU, through fake tensors."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import effv2_kernels as ek
import python_ref
from effv2_kernels.engines import triton as triton_ops
from effv2_kernels.launch import off_tables, switched_off, targets
from effv2_kernels.launch.off_tables import Entry
from effv2_kernels.patching import choices
from effv2_kernels.patching.backends import switched_off_notes
from tests.ops.cases import OPS, SMALL, arguments, engine, mapped, run

NATIVE = {"stem", "expand_depthwise", "squeeze_excite_gate"}
GPU = "NVIDIA Test GPU (2)"


class Record(TorchDispatchMode):
    """The names of the effv2 ops that are dispatched, and of the convolutions that are not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "effv2":
            self.names.append(func._schema.name.removeprefix("effv2::"))
        elif "convolution" in func._schema.name:
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_patched_model(dtype: torch.dtype) -> None:
    with FakeTensorMode() as mode, torch.device("cuda"), default_dtype(dtype):
        model = python_ref.create("b0", num_classes=10).eval()
        report = ek.patch(model)
        x = torch.empty(2, 3, 65, 78, dtype=dtype)
        with torch.no_grad(), Record() as record:
            y = model(x)
    assert y.device.type == "cuda" and y.shape == (2, 10) and y.fake_mode is mode
    # What is dispatched is the op, whichever engine then makes two of it.
    ran = [op for entry in report.patched for op in entry.ops]
    assert record.names == ["expand_depthwise" if "+" in op else op.partition("[")[0] for op in ran]
    assert set(record.names) >= NATIVE


@pytest.fixture
def off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that puts entries into the table of the GPU that fake tensors are on."""
    monkeypatch.setenv("EFFV2_TABLES", str(tmp_path))
    monkeypatch.setattr(switched_off, "gpu_of", lambda device: GPU if device.type == "cuda" else "")
    monkeypatch.setattr("effv2_kernels.ops.NATIVE_OPS", frozenset({*NATIVE, "depthwise_bias_act"}))
    monkeypatch.setattr("effv2_kernels.engines.native.LOADED", True)
    monkeypatch.setattr(triton_ops, "missing", str)
    target = dataclasses.replace(targets.KNOWN["sm_90a"], name=GPU)

    def here(device: torch.device, triton: bool) -> choices.Where:
        return choices.Where(device.type, target if device.type == "cuda" else None, triton)

    # By its full name: what the package calls ``patch`` is the function.
    monkeypatch.setattr(importlib.import_module("effv2_kernels.patching.patch"), "here", here)

    def write(*entries: Entry) -> None:
        off_tables.write(off_tables.path_of(GPU, tmp_path), entries)
        switched_off.forget()

    switched_off.forget()
    yield write
    switched_off.forget()


def report_of(device: str = "cuda") -> ek.PatchReport:
    with FakeTensorMode(), torch.device(device), default_dtype(torch.bfloat16):
        return ek.patch(python_ref.create("b0", num_classes=10).eval())


def of(report: ek.PatchReport) -> set[str]:
    return {op for entry in report.patched for op in entry.ops}


def test_the_report_says_what_is_switched_off(off: Callable[..., None]) -> None:
    before = report_of()
    halves = "conv_bias_act[triton] + depthwise_bias_act[cuda]"
    assert of(before) >= {"stem[cuda]", halves, "fused_mbconv[triton]"}
    assert not [note for note in before.notes if "switched off" in note]
    narrow = (("channels", 24),)
    off(
        Entry("depthwise_bias_act", "cuda", "any", (), "slower: 0.8x", "abc123"),
        Entry("stem", "any", "bfloat16", (), "wrong: 2 of 9 outputs", "abc123"),
        Entry("gated_project", "triton", "any", narrow, "slower: 0.9x", "abc123"),
        Entry("squeeze_excite_gate", "triton", "any", (), "wrong", "abc123"),  # which has none
    )
    report = report_of()
    changed = {"stem[cuda]": "stem[aten]", halves: halves.replace("[cuda]", "[triton]")}
    assert of(report) == {changed.get(op, op) for op in of(before)}
    wrong = "wrong: 2 of 9 outputs, measured at abc123"
    assert [note for note in report.notes if "switched off" in note] == [
        f"stem runs through ATen (cuda: switched off: {wrong}; triton: switched off: {wrong})",
        f"stem: cuda and triton are switched off in bfloat16 on {GPU} ({wrong})",
        f"depthwise_bias_act: cuda is switched off on {GPU} (slower: 0.8x, measured at abc123)",
        f"gated_project: triton is switched off on {GPU} at channels 24 "
        "(slower: 0.9x, measured at abc123)",
    ]
    assert f"note: depthwise_bias_act: cuda is switched off on {GPU}" in str(report)
    on_the_cpu = report_of("cpu")
    assert not [note for note in on_the_cpu.notes if "switched off" in note]


def test_asked_for_by_name_only_what_is_wrong_is_off(off: Callable[..., None]) -> None:
    off(
        Entry("fused_mbconv", "triton", "any", (), "slower: 0.8x", "abc123"),
        Entry("stem", "triton", "any", (), "wrong", "abc123"),
    )
    target = dataclasses.replace(targets.KNOWN["sm_90a"], name=GPU)
    block, stem = (arguments(op, dtype=torch.bfloat16) for op in ("fused_mbconv", "stem"))
    assert engine("fused_mbconv", block, target=target) == "aten"
    assert engine("fused_mbconv", block, target=target, by_name=True) == "triton"
    assert engine("stem", stem, target=target, by_name=True) == "aten"
    notes = switched_off_notes(["fused_mbconv", "stem"], torch.device("cuda"), triton=True)
    assert notes == [f"stem: triton is switched off on {GPU} (wrong, measured at abc123)"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_outputs_are_as_on_the_cpu(op: str, dtype: torch.dtype) -> None:
    """Shapes, dtypes and strides of an op on fake CUDA tensors are those of real CPU tensors."""
    args = arguments(op, SMALL, dtype=dtype, layout="channels_last")
    real = run(op, args)
    with FakeTensorMode():
        fakes = mapped(
            args, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
        )
        found = run(op, fakes)
    for fake, right in zip(found, real, strict=True):
        assert fake.device.type == "cuda" and fake.dtype == right.dtype
        assert fake.shape == right.shape and fake.stride() == right.stride()
