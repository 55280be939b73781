"""Wheels: pure Python without CUDA, complete with it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["csrc", "effv2_kernels", "python_ref", "setup.py", "pyproject.toml", "MANIFEST.in"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what an install needs: a build leaves its products in the tree."""
    target = tmp_path / "checkout"
    target.mkdir()
    for name in [*SOURCES, "LICENSE", "README.md"]:
        source = ROOT / name
        if source.is_dir():
            built = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(source, target / name, ignore=built)
        elif source.exists():
            shutil.copy(source, target / name)
    return target


def build_wheel(checkout: Path, **environment: str) -> Path:
    if any(importlib.util.find_spec(m) is None for m in ("pip", "setuptools", "wheel")):
        pytest.skip("pip, setuptools and wheel are not all installed")
    flags = ["--no-build-isolation", "--no-deps", "--no-index", "-q", "-w", "dist"]
    command = [sys.executable, "-m", "pip", "wheel", ".", *flags]
    environment = {**os.environ, **environment}
    result = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (wheel,) = (checkout / "dist").glob("*.whl")
    return wheel


def imported(wheel: Path, folder: Path, code: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


def test_pure_python_wheel(checkout: Path, tmp_path: Path) -> None:
    wheel = build_wheel(checkout, EFFV2_NO_CUDA="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so") or name.startswith("csrc")]
    assert "effv2_kernels/_native.py" in names
    assert any(name.startswith("python_ref/") for name in names)
    assert not (checkout / "build" / "native").exists(), "something was compiled"
    printed = imported(
        wheel,
        tmp_path / "pure",
        "from effv2_kernels import _native\n"
        "print(_native.__file__, _native.build_info(), _native.load().reason, sep='|')",
    )
    path, info, reason = printed.split("|")
    assert path.startswith(str(tmp_path)) and info == "{}"
    assert reason == "not built: this is a pure-Python install (EFFV2_NO_CUDA=1 was set)"


@pytest.mark.parametrize("broken", ["missing", "failing"])
def test_without_a_working_nvcc(checkout: Path, tmp_path: Path, broken: str) -> None:
    """No nvcc, or one that fails: a pure-Python wheel that says which."""
    tools = tmp_path / "cuda" / "bin"
    tools.mkdir(parents=True)
    if broken == "failing":
        (tools / "nvcc").write_text("#!/bin/sh\necho no host compiler >&2\nexit 1\n")
        (tools / "nvcc").chmod(0o755)
    wheel = build_wheel(checkout, CUDA_HOME=str(tmp_path / "cuda"), PATH=str(tools))
    assert wheel.name.endswith("-py3-none-any.whl")
    note = zipfile.ZipFile(wheel).read("effv2_kernels/_not_built.txt").decode()
    expected = {
        "missing": "no nvcc in",
        "failing": "nvcc cannot compile and link: no host compiler",
    }
    assert note.startswith(expected[broken])


@pytest.mark.slow
def test_native_wheel(checkout: Path, tmp_path: Path) -> None:
    """One architecture, to be quick; then nothing is compiled again until a source changes."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH")
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("pybind11 is not installed")
    wheel = build_wheel(checkout, EFFV2_CUDA_ARCHS="90a")
    assert "linux" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "effv2_kernels/_ops.so" in names
    assert [n for n in names if n.startswith("effv2_kernels/_C.")]
    printed = imported(
        wheel,
        tmp_path / "native",
        "import effv2_kernels\nfrom effv2_kernels import _native\n"
        "print(_native.load().loaded, _native.build_info()['architectures'])",
    )
    assert printed == "True ['sm_90a']"

    objects = sorted((checkout / "build" / "native").glob("*.o"))
    before = {path.name: path.stat().st_mtime_ns for path in objects}
    (checkout / "csrc" / "module.cpp").touch()
    wheel.unlink()
    build_wheel(checkout, EFFV2_CUDA_ARCHS="90a")
    changed = [path.name for path in objects if path.stat().st_mtime_ns != before[path.name]]
    assert changed == ["module.o"]


def test_unknown_architecture_is_an_error(checkout: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH")
    command = [sys.executable, "setup.py", "build_ext"]
    environment = {**os.environ, "EFFV2_CUDA_ARCHS": "12"}
    result = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "this nvcc does not know '12'" in result.stderr
