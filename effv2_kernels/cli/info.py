"""``info``: what a bug report needs to say about the machine and the installation."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import effv2_kernels

from .. import _native
from ..launch import off_tables, switched_off
from ..measuring.machine import cpu_name, driver_version, output, version_of

_PACKAGES = ("torch", "triton", "torchvision", "timm", "numpy")
_VARIABLES = (
    "EFFV2_",
    "CUDA_",
    "OMP_",
    "MKL_",
    "ONEDNN_",
    "DNNL_",
    "TORCH_",
    "TRITON_",
    "PYTORCH_",
)


def text() -> str:
    """Everything, as plain text."""
    sections = {
        f"effv2_kernels {effv2_kernels.__version__}": _software(),
        "machine": _machine(),
        "built": _built(),
        "backends": _backends(),
        "switched off": _switched_off(),
    }
    lines = []
    for title, entries in sections.items():
        lines.append(title)
        lines += [f"  {name + ':':<17} {value}" for name, value in entries]
    return "\n".join(lines)


def _software() -> Iterator[tuple[str, str]]:
    yield "installed in", str(Path(effv2_kernels.__file__).parent)
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    for package in _PACKAGES:
        yield package, version_of(package)
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    cuda = torch.version.cuda
    yield "torch's CUDA", f"{cuda}, cuDNN {cudnn}" if cuda else "none (a CPU build of PyTorch)"
    yield "oneDNN", _onednn_version()
    yield "nvcc", _nvcc()


def _onednn_version() -> str:
    if not torch.backends.mkldnn.is_available():
        return "none"
    found = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    return found[1] if found else "version unknown"


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
    if path is None:
        return "none found"
    found = re.search(r"V([\d.]+)", output([path, "--version"]))
    return f"{found[1] if found else 'does not run'} ({path})"


def _machine() -> Iterator[tuple[str, str]]:
    yield "OS", platform.platform()
    capability = torch.backends.cpu.get_cpu_capability()
    yield "CPU", f"{cpu_name()}, {os.cpu_count()} cores, PyTorch uses {capability}"
    yield (
        "threads",
        f"{torch.get_num_threads()} in an op, {torch.get_num_interop_threads()} between",
    )
    if not torch.cuda.is_available():
        yield "GPU", f"none that PyTorch can use (driver: {driver_version()})"
    else:
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            memory = f"{gpu.total_memory / 2**30:.0f} GiB"
            yield f"GPU {index}", f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {memory}"
        yield "driver", driver_version()
    for name in sorted(os.environ):
        if name.startswith(_VARIABLES):
            yield name, os.environ[name]


def _built() -> Iterator[tuple[str, str]]:
    status, info = _native.load(), _native.build_info()
    for name, one in (("native library", status), ("CPU passes", _native.load_cpu())):
        yield name, f"loaded from {one.path}" if one.loaded else one.reason
    for key, value in info.items():
        if key != "kernels":
            text = ", ".join(value) if isinstance(value, list) else value
            yield key.replace("_", " "), str(text)
    yield from _kernels(info.get("kernels", []))


def _kernels(kernels: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """One line for each kernel and architecture: its instances, and the worst of them."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for kernel in kernels:
        function = kernel["name"].split("<")[0].split("(")[0].rpartition("::")[2]
        groups.setdefault((kernel["architecture"], function), []).append(kernel)
    for (architecture, function), found in groups.items():
        registers = max(k["registers"] for k in found)
        spilled = max(k["spill_store_bytes"] + k["spill_load_bytes"] for k in found)
        yield (
            architecture,
            f"{function}: {len(found)} instances, at most {registers} registers "
            f"and {spilled} bytes spilled",
        )


def _backends() -> Iterator[tuple[str, str]]:
    for name, status in effv2_kernels.backends().items():
        answer = "can run" if status.available else "cannot run"
        yield name, f"{answer}: {status.reason}" if status.reason else answer


def _switched_off() -> Iterator[tuple[str, str]]:
    """For each GPU that is here, what its table and the environment name, one entry a line."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = dict.fromkeys(torch.cuda.get_device_properties(i).name for i in range(count)) or ("",)
    lines = [(entry.op, entry.text(gpu)) for gpu in gpus for entry in switched_off.of_gpu(gpu)]
    if switched_off.everything_is_on():
        yield "nothing", f"{off_tables.VARIABLE}=none, so the tables are not looked at"
    elif not lines:
        yield "nothing", "no table and no variable names an operator for what is here"
    yield from dict.fromkeys(lines)
