"""Patched models take our ops on CUDA tensors: seen without a GPU, through fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import effv2_kernels as ek
import python_ref
from effv2_kernels import _native
from tests.ops.cases import OPS, SMALL, arguments, mapped, run

STATUS = _native.load()
NATIVE = {"stem", "expand_depthwise", "squeeze_excite_gate"}


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
    expected = [op.partition("[")[0] for entry in report.patched for op in entry.ops]
    assert record.names == expected
    assert set(expected) >= NATIVE


@pytest.mark.skipif(not STATUS.loaded, reason=f"native library {STATUS.reason}")
def test_the_report_says_what_runs_natively() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        model = python_ref.create("b0", num_classes=10).eval()
        report = ek.patch(model)
    ops = {op for entry in report.patched for op in entry.ops}
    assert {f"{name}[cuda]" for name in NATIVE} <= ops
    assert not [op for op in ops if op.endswith("[onednn]")]


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
