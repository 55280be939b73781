"""A copy of the tree, and the environment in which its commands find the fake GPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

#: The release whose calls of the CUDA runtime it answers; that of our GPU machines.
TORCH = "2.11."
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_COPIED = (
    *("benchmarks", "csrc", "effv2_kernels", "python_ref", "tests"),
    *("Makefile", "README.md", "pyproject.toml", "setup.py"),
)
NOTHING: Mapping[str, str] = MappingProxyType({})
_LINKED_BY_US, _LINKED_HERE = "-cudart static", "-cudart shared"


# A sanitizer that lets everything pass.
_SANITIZER = """\
while [ "${1#--}" != "$1" ]; do shift 2; done
exec "$@"
"""
# Triton's own, which refuses what has FAKE_GPU_REFUSED in it.
_PTXAS = """\
for word; do
  case "$word" in *.ptx)
    if [ -n "$FAKE_GPU_REFUSED" ] && grep -q "$FAKE_GPU_REFUSED" "$word"; then
      echo "ptxas fatal   : planted: $FAKE_GPU_REFUSED is refused" >&2
      exit 255
    fi
  esac
done
exec "$FAKE_GPU_PTXAS" "$@"
"""


class Marked(subprocess.Popen):
    """A process of which all that it started can be found: by a variable that they inherit."""

    mark = ""


class Machine:
    """One with a fake GPU, in ``folder``. Built in seconds where this tree was built before: what
    nvcc made of the kernels is taken from there."""

    def __init__(self, folder: Path):
        self.folder, self.tree = folder, folder / "tree"
        self.preloaded = folder / "gpu" / "libcuda.so.1"
        #: What the device refused, a line each.
        self.complaints = folder / "complaints.txt"
        self.environment = self._environment()
        self._build_device()
        self._copy_tree()

    def popen(
        self, command: Sequence[str], out: Path, variables: Mapping[str, str] = NOTHING
    ) -> Marked:
        """The command with this Python where it says "python", its output into a file."""
        words = [sys.executable if word == "python" else word for word in command]
        name, value = "FAKE_GPU_RUN", uuid.uuid4().hex
        environment = {**self.environment, **variables, name: value}
        with out.open("w") as file:
            process = Marked(
                words, cwd=self.tree, env=environment, stdout=file, stderr=subprocess.STDOUT
            )
        process.mark = f"{name}={value}"
        return process

    def run(
        self, command: Sequence[str], variables: Mapping[str, str] = NOTHING, seconds: float = 400
    ) -> tuple[int, str]:
        """Exit status and output; all that it started is ended with it."""
        out = self.folder / f"{uuid.uuid4().hex}.txt"
        process = self.popen(command, out, variables)
        try:
            status = process.wait(seconds)
        finally:
            kill(process)
        return status, out.read_text(errors="replace")

    def _environment(self) -> dict[str, str]:
        ours = ("EFFV2_", "PYTEST_", "MAKE", "TRITON_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        gpu = str(self.preloaded.parent)
        return {
            **kept,
            "LD_PRELOAD": str(self.preloaded),
            "LD_LIBRARY_PATH": gpu,
            "TRITON_LIBCUDA_PATH": gpu,
            "TRITON_PTXAS_PATH": str(self.folder / "bin" / "ptxas"),
            "TRITON_CACHE_DIR": str(self.folder / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "PYTHONPATH": os.pathsep.join([str(HERE / "site"), str(self.tree)]),
            "PATH": os.pathsep.join([str(self.folder / "bin"), kept["PATH"]]),
            "PYTEST_ADDOPTS": "-p fake_gpu_tests",
            "OMP_NUM_THREADS": "1",
            "FAKE_GPU_PTXAS": str(_package("triton") / "backends" / "nvidia" / "bin" / "ptxas"),
            "FAKE_GPU_COMPLAINTS": str(self.complaints),
            "EFFV2_COMMIT": "fake",
            # As this tree was built, so that nothing is compiled again.
            "EFFV2_CUDA_ARCHS": "",
        }

    def _build_device(self) -> None:
        self.preloaded.parent.mkdir(parents=True)
        options = "-std=c++17 -O1 -shared -Xcompiler -fPIC,-fvisibility=hidden -cudart none -ldl"
        sources = map(str, sorted((HERE / "device").glob("*.cpp")))
        command = [nvcc(), *options.split(), "-o", str(self.preloaded), *sources]
        subprocess.run(command, check=True)
        self._tool("compute-sanitizer", _SANITIZER)
        self._tool("ptxas", _PTXAS)

    def _tool(self, name: str, script: str) -> None:
        tool = self.folder / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{script}")
        tool.chmod(0o755)

    def _copy_tree(self) -> None:
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "results", ".*")
        self.tree.mkdir()
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.tree / name, ignore=ignored)
            else:
                shutil.copy2(source, self.tree)
        built = ROOT / "build" / "native"
        if built.exists():
            shutil.copytree(built, self.tree / "build" / "native")
        # A static runtime would not come by the fake one.
        setup = self.tree / "setup.py"
        text = setup.read_text()
        assert _LINKED_BY_US in text
        setup.write_text(text.replace(_LINKED_BY_US, _LINKED_HERE))


def kill(process: Marked) -> None:
    """With all that it started, and what that started, whatever session it is in."""
    mark = process.mark.encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone, or not ours
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
    process.wait()


def why_not() -> str:
    """Why there is no fake GPU here, or an empty string."""
    if not sys.platform.startswith("linux") or not nvcc():
        return "the fake GPU is built with nvcc, on Linux"
    if not version("torch").startswith(TORCH):
        return f"the fake GPU is for PyTorch {TORCH}, whose runtime calls it knows"
    if find_spec("triton") is None:
        return "there is no Triton"
    return ""


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc") or ""
