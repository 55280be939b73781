"""One built library on several versions of torch, each in a throw-away environment.

Off by default: every version is a download of some gigabytes. EFFV2_TORCH_MATRIX=1 runs the
versions below; EFFV2_TORCH_MATRIX="2.10.0 2.12.1" runs those.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from effv2_kernels import _native

ASKED = os.environ.get("EFFV2_TORCH_MATRIX", "")
VERSIONS = ["2.10.0", "2.11.0", "2.15.0"] if ASKED in ("", "1") else ASKED.split()

# The contract's own error shows that torch reaches the code, every argument unboxed.
PROBE = """
import torch
import effv2_kernels
from effv2_kernels import _native
for status in (_native.load(), _native.load_cpu()):
    assert status.loaded, status.reason
y = torch.randn(2, 24, 7, 5).contiguous(memory_format=torch.channels_last)
c = torch.ops.effv2_cpu.coefficients(y, None, None, None, None, 1e-3)
torch.testing.assert_close(c[0], y.mean((0, 2, 3)))
keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
tensors = [torch.randn(s) for s in [(2, 12), (4, 12), (4,), (12, 4), (12,)]]
try:
    torch.ops.effv2_native.squeeze_excite_gate.default.redispatch(keys, *tensors, "silu", "sigmoid")
except RuntimeError as error:
    assert "pooled must be on a CUDA device, found cpu" in str(error), error
else:
    raise AssertionError("CPU tensors were accepted")
print(torch.__version__, "loads")
"""


@pytest.mark.slow
@pytest.mark.skipif(not ASKED, reason="EFFV2_TORCH_MATRIX is not set: it downloads several torches")
@pytest.mark.skipif(not _native.load().loaded, reason=f"native library {_native.load().reason}")
@pytest.mark.skipif(not _native.load_cpu().loaded, reason=f"_cpu.so {_native.load_cpu().reason}")
@pytest.mark.parametrize("version", VERSIONS)
def test_loads_on_torch(version: str, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    try:
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        python = str(environment / "bin" / "python")
        install = [python, "-m", "pip", "install", "-q", f"torch=={version}", "numpy"]
        subprocess.run(install, check=True)
        package = tmp_path / "package"
        folder = Path(_native.__file__).parent
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(folder, package / folder.name, ignore=ignore)
        probe = subprocess.run(
            [python, "-c", PROBE],
            cwd=package,
            env={"PYTHONPATH": str(package), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert probe.returncode == 0, probe.stderr[-3000:]
        assert probe.stdout.startswith(version)
    finally:
        shutil.rmtree(environment, ignore_errors=True)
