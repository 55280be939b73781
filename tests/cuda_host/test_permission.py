"""csrc/common/launch.cuh as a GPU has it, over a stand-in for the runtime's functions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda_host.runner import CSRC, HERE


def test_two_threads_cannot_take_shared_memory_from_each_other(tmp_path: Path) -> None:
    """One kernel, launched three times with 64 KB by one thread and with 200 KB by another, in the
    order of events in which a permission for 64 KB would come last."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH: the runtime's headers come with it")
    program = tmp_path / "permission"
    source = HERE / "drivers" / "permission.cpp"
    flags = ["-x", "c++", "-std=c++17", f"-I{CSRC}", "-cudart", "none"]
    command = ["nvcc", *flags, str(source), "-lpthread", "-o", str(program)]
    compiled = subprocess.run(command, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr[-4000:]
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
    less, more, all_permitted = map(int, done.stdout.split())
    assert (less, more) == (3, 3), "launches that the runtime accepted"
    assert all_permitted, "all that a block can have, less what is static"
