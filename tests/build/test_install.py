"""Wheels: what they hold depends on which compilers there are."""

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
    wheel = build_wheel(checkout, EFFV2_NO_NATIVE="1")
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
        "print(_native.__file__, _native.build_info(), sep='|')\n"
        "print(_native.load().reason, _native.load_cpu().reason, sep='|')",
    )
    file, reasons = printed.splitlines()
    path, info = file.split("|")
    assert path.startswith(str(tmp_path)) and info == "{}"
    assert reasons.split("|") == [
        f"not built: this is an install without {name} (EFFV2_NO_NATIVE=1 was set)"
        for name in ("_ops.so", "_cpu.so")
    ]


@pytest.mark.slow
def test_wheel_of_the_cpu_passes(checkout: Path, tmp_path: Path) -> None:
    """Without CUDA: one library, which any Python loads."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler on PATH")
    wheel = build_wheel(checkout, EFFV2_NO_CUDA="1")
    assert "linux" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert [n for n in names if n.endswith(".so")] == ["effv2_kernels/_cpu.so"]
    assert not [name for name in names if name.startswith("csrc")]
    printed = imported(
        wheel,
        tmp_path / "cpu",
        "import torch\nfrom effv2_kernels import _native\n"
        "from effv2_kernels.engines import passes\n"
        "print(passes.for_map(torch.ones(1)).__name__, _native.load().reason, sep='|')",
    )
    why_no_cuda = "not built: this is an install without _ops.so (EFFV2_NO_CUDA=1 was set)"
    assert printed.split("|") == ["effv2_kernels.engines.passes.native", why_no_cuda]


@pytest.mark.parametrize("broken", ["missing", "failing"])
def test_without_a_working_compiler(checkout: Path, tmp_path: Path, broken: str) -> None:
    """A wheel without the CPU passes, and why: the build goes on."""
    compiler = tmp_path / "cxx"
    if broken == "failing":
        compiler.write_text("#!/bin/sh\necho no assembler >&2\nexit 1\n")
        compiler.chmod(0o755)
    wheel = build_wheel(checkout, EFFV2_NO_CUDA="1", CXX=str(compiler))
    assert wheel.name.endswith("-py3-none-any.whl")
    note = zipfile.ZipFile(wheel).read("effv2_kernels/_cpu_not_built.txt").decode()
    expected = {
        "missing": f"{compiler} cannot be run: No such file or directory",
        "failing": "cxx cannot compile and link: no assembler",
    }
    assert note.startswith(expected[broken])


@pytest.mark.parametrize("broken", ["missing", "failing"])
def test_without_a_working_nvcc(checkout: Path, tmp_path: Path, broken: str) -> None:
    """No nvcc, or one that fails, and no C++ compiler: a pure-Python wheel that says which."""
    tools = tmp_path / "cuda" / "bin"
    tools.mkdir(parents=True)
    if broken == "failing":
        (tools / "nvcc").write_text("#!/bin/sh\necho no host compiler >&2\nexit 1\n")
        (tools / "nvcc").chmod(0o755)
    wheel = build_wheel(checkout, CUDA_HOME=str(tmp_path / "cuda"), PATH=str(tools))
    assert wheel.name.endswith("-py3-none-any.whl")
    note = zipfile.ZipFile(wheel).read("effv2_kernels/_ops_not_built.txt").decode()
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
    assert {"effv2_kernels/_ops.so", "effv2_kernels/_cpu.so"} <= {*names}
    assert [n for n in names if n.startswith("effv2_kernels/_C.")]
    printed = imported(
        wheel,
        tmp_path / "native",
        "import effv2_kernels\nfrom effv2_kernels import _native\n"
        "print(_native.load().loaded, _native.build_info()['architectures'])",
    )
    assert printed == "True ['sm_90a']"

    objects = sorted((checkout / "build" / "native").rglob("*.o"))
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
