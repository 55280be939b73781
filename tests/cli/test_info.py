from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import effv2_kernels
from effv2_kernels.cli import info, main
from effv2_kernels.launch import off_tables, switched_off
from effv2_kernels.measuring import machine


def test_says_versions_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert f"effv2_kernels {effv2_kernels.__version__}" in shown
    assert torch.__version__.split("+")[0] in shown
    listed = shown.partition("\nbackends\n")[2]
    for name, status in effv2_kernels.backends().items():
        line = next(line for line in listed.splitlines() if line.startswith(f"  {name}:"))
        assert ("can run" if status.available else "cannot run") in line
        assert status.reason in line


def test_says_why_nothing_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    status = effv2_kernels._native.NativeStatus(False, "not built: no nvcc", None)
    monkeypatch.setattr(effv2_kernels._native, "load", lambda: status)
    monkeypatch.setattr(effv2_kernels._native, "build_info", dict)
    assert "not built: no nvcc" in info.text()


def test_sums_up_the_instances_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = {"architecture": "sm_90a", "spill_store_bytes": 4, "spill_load_bytes": 8}
    kernels = [
        {**kernel, "name": "void a::gate<float, 2>(a::P)", "registers": 40},
        {**kernel, "name": "void a::gate<float, 4>(a::P)", "registers": 60},
    ]
    built = {"architectures": ["sm_90a"], "kernels": kernels}
    monkeypatch.setattr(effv2_kernels._native, "build_info", lambda: built)
    assert "gate: 2 instances, at most 60 registers and 12 bytes spilled" in info.text()


@pytest.fixture
def asked_again() -> Iterator[None]:
    """Nothing that was read of what is switched off lasts longer than a test."""
    switched_off.forget()
    yield
    switched_off.forget()


def test_lists_what_is_switched_off(
    asked_again: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = off_tables.Entry("stem", "cuda", "any", (("channels", 3),), "slower: 0.8x", "abc123")
    gpu = "NVIDIA Test GPU (2)"
    off_tables.write(off_tables.path_of(gpu, tmp_path), [slow])
    monkeypatch.setenv("EFFV2_TABLES", str(tmp_path))
    monkeypatch.setenv("EFFV2_DISABLE", "gated_project:triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    here = SimpleNamespace(name=gpu, major=9, minor=0, total_memory=2**36)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: here)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert info.text().partition("\nswitched off\n")[2].splitlines() == [
        "  gated_project:    triton is switched off (EFFV2_DISABLE)",
        f"  stem:             cuda is switched off on {gpu} at channels 3 "
        "(slower: 0.8x, measured at abc123)",
    ]
    monkeypatch.setenv("EFFV2_DISABLE", "none")
    switched_off.forget()
    assert "EFFV2_DISABLE=none" in info.text().partition("\nswitched off\n")[2]


def test_says_that_nothing_is_switched_off(
    asked_again: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EFFV2_DISABLE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "\n  nothing:  " in info.text().partition("\nswitched off")[2]


def test_a_missing_tool_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    shown = info.text()
    assert "none found" in shown
    assert machine.driver_version() == "none"


def test_no_command_is_an_error() -> None:
    with pytest.raises(SystemExit):
        main([])
