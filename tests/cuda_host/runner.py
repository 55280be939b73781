"""Compiles a driver, which includes a ``.cu`` file of csrc/, for the CPU, and runs it on tensors.

A driver is a program of its own: an AddressSanitizer error or a deadlock ends it and not pytest.
Each run is made twice within it, the second time with blocks and threads in another order.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
# The order of csrc/kernels.h.
ACTS = ("none", "silu", "relu", "relu6", "hardswish", "gelu", "sigmoid", "hardsigmoid")
WARNINGS = "-Wall,-Wno-unknown-pragmas,-Wno-unused-function"
SANITIZERS = "-fsanitize=address,-fsanitize=alignment,-fsanitize=signed-integer-overflow"
# One stack for each device thread: what gcc would keep of a frame after its return is in the way.
FLAGS = f"-g1,-fno-sanitize-recover=all,--param=asan-use-after-return=0,{SANITIZERS},{WARNINGS}"


class HostError(Exception):
    """What a driver printed before it died."""


@dataclass(frozen=True)
class Driver:
    program: Path

    def __call__(
        self,
        integers: Sequence[int],
        tensors: Sequence[Tensor | None],
        *,
        multiprocessors: int = 132,
        clusters: bool = True,
        offset: int | Sequence[int] = 0,
    ) -> tuple[list[Tensor | None], list[int]]:
        """Runs it on copies of ``tensors``, taken as they lie in memory, each in a buffer of its
        own, that starts ``offset`` elements past an aligned address: one number, or one for each.

        Returns the tensors as they are afterwards and the integers that the driver answers. Raises
        HostError with what the sanitizers or the runtime found.
        """
        numbers = [multiprocessors, int(clusters), *integers]
        request = [struct.pack(f"<q{len(numbers)}qq", len(numbers), *numbers, len(tensors))]
        offsets = [offset] * len(tensors) if isinstance(offset, int) else offset
        for tensor, elements in zip(tensors, offsets, strict=True):
            data = b"" if tensor is None else raw(tensor)
            start = 0 if tensor is None else elements * tensor.element_size()
            request += [struct.pack("<qq", len(data), start), data]
        options = "detect_leaks=0:abort_on_error=0:exitcode=4"
        result = subprocess.run(
            [str(self.program)],
            input=b"".join(request),
            capture_output=True,
            env={**os.environ, "ASAN_OPTIONS": options},
            check=False,
        )
        if result.returncode != 0:
            raise HostError(result.stderr.decode(errors="replace")[:4000])
        return _answer(result.stdout, tensors)


def raw(tensor: Tensor) -> bytes:
    """The bytes of a dense tensor in the order of its memory."""
    flat = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return flat.view(torch.uint8).numpy().tobytes()


def _answer(data: bytes, tensors: Sequence[Tensor | None]) -> tuple[list[Tensor | None], list[int]]:
    status, count = struct.unpack_from("<qq", data)
    if status != 0:
        raise HostError(f"the launch failed: cudaError_t {status}")
    integers = list(struct.unpack_from(f"<{count}q", data, 16))
    at = 16 + 8 * count
    found: list[Tensor | None] = []
    for tensor in tensors:
        if tensor is None:
            found.append(None)
            continue
        new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        size = tensor.numel() * tensor.element_size()
        if size:
            flat = torch.frombuffer(bytearray(data[at : at + size]), dtype=tensor.dtype)
            new.as_strided((tensor.numel(),), (1,)).copy_(flat)
        at += size
        found.append(new)
    assert at == len(data)
    return found, integers


def driver(factory: pytest.TempPathFactory, source: Path) -> Driver:
    """The program of ``source``, compiled once a test session, for all workers of pytest-xdist."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH: the kernels' headers come with it")
    base = factory.getbasetemp()
    folder = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    target = folder / f"cuda_host_{source.stem}"
    with open(folder / f"{source.stem}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            compile_driver(source, target)
    return Driver(target)


def compile_driver(source: Path, target: Path) -> None:
    flags = ["-DEFFV2_HOST_RUNTIME", f"-I{HERE}", f"-I{CSRC}", "-Xcompiler", FLAGS]
    command = ["nvcc", "-x", "c++", "-std=c++17", "-O1", *flags, "-cudart", "none"]
    partial = target.with_suffix(".partial")
    result = subprocess.run(
        [*command, str(source), "-lpthread", "-o", str(partial)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-4000:]
    partial.rename(target)
