from __future__ import annotations

import pytest
import torch

import effv2_kernels
from effv2_kernels.cli import info, main


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


def test_a_missing_tool_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    shown = info.text()
    assert "none found" in shown
    assert info.driver_version() == "none"


def test_no_command_is_an_error() -> None:
    with pytest.raises(SystemExit):
        main([])
