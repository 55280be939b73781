"""Which backends can run here, and why not, in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .. import _native, ops
from ..engines import onednn
from ..engines import triton as triton_ops
from ..launch import switched_off

NAMES = ("cuda", "triton", "cpu")
MIN_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class BackendStatus:
    """available; reason: why not, or (empty or) what limits it."""

    available: bool
    reason: str = ""


def backends() -> dict[str, BackendStatus]:
    """{"cuda": status, "triton": status, "cpu": status}."""
    return {"cuda": _cuda(), "triton": _triton(), "cpu": _cpu()}


def _cuda() -> BackendStatus:
    native = _native.load()
    if not native.loaded:
        return BackendStatus(False, f"the native library is not loaded: {native.reason}")
    missing = _no_gpu()
    if missing:
        return BackendStatus(False, missing)
    found = ", ".join(sorted(ops.NATIVE_OPS))
    others = "ATen" if triton_ops.missing() else "Triton or ATen"
    return BackendStatus(True, f"native kernels: {found}; the other ops run through {others}")


def _triton() -> BackendStatus:
    missing = triton_ops.missing()
    if missing:
        return BackendStatus(False, missing)
    if ops.TRITON_INTERPRETED:
        reason = "TRITON_INTERPRET=1: interpreted on the CPU, to check results; very slow"
        return BackendStatus(True, reason)
    missing = _no_gpu()
    if missing:
        return BackendStatus(False, missing)
    found = ", ".join(sorted(ops.TRITON_OPS))
    return BackendStatus(True, f"Triton kernels: {found}; the other ops run through ATen")


def _cpu() -> BackendStatus:
    if not torch.backends.mkldnn.is_available():
        return BackendStatus(True, "this PyTorch has no oneDNN: the ops run through ATen")
    dtypes = sorted(str(dtype).removeprefix("torch.") for dtype in onednn.onednn_dtypes())
    return BackendStatus(True, f"oneDNN for {', '.join(dtypes)}; other dtypes through ATen")


def _no_gpu() -> str:
    """Why no GPU can be used, or an empty string."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA GPU or driver"
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; 8.0 is needed"
    return ""


def choose(requested: str, device: torch.device) -> tuple[str, list[str]]:
    """The backend for a model on ``device``, and notes for the report.

    An explicit request that cannot run raises RuntimeError with the reason; "auto" falls back.
    """
    if requested not in ("auto", *NAMES):
        known = ", ".join(("auto", *NAMES))
        raise ValueError(f"backend must be one of {known}, got {requested!r}")
    status = backends()
    if requested != "auto":
        if not status[requested].available:
            reason = status[requested].reason
            raise RuntimeError(f"backend {requested!r} cannot run here: {reason}")
        if device.type not in _devices(requested):
            raise RuntimeError(f"backend {requested!r} cannot run: the model is on {device.type}")
        return requested, []
    if device.type == "cuda":
        if status["cuda"].available:
            return "cuda", [status["cuda"].reason]
        no_cuda = f"no CUDA kernels: {status['cuda'].reason}"
        if status["triton"].available:
            return "triton", [no_cuda, status["triton"].reason]
        return "aten", [no_cuda, f"no Triton kernels: {status['triton'].reason}"]
    if device.type == "cpu":
        return "cpu", [f"no GPU kernels: {status['cuda'].reason}"]
    return "aten", [f"no kernels for device type {device.type!r}"]


def _devices(requested: str) -> tuple[str, ...]:
    if requested == "triton" and ops.TRITON_INTERPRETED:
        return ("cuda", "cpu")
    return ("cpu",) if requested == "cpu" else ("cuda",)


def switched_off_notes(
    names: Iterable[str], device: torch.device, triton: bool = False
) -> list[str]:
    """What the report says of those ops in ``names`` that an engine which is here declines on
    ``device``, whole or at some shapes. ``triton``: where Triton was asked for by name."""
    if device.type != "cuda" and not triton:
        return []
    here = {name: _engines(name, triton) for name in dict.fromkeys(names)}
    return switched_off.sentences(here, switched_off.gpu_of(device), by_name=triton)


def _engines(op: str, triton: bool) -> list[str]:
    """Which engines have the op, and may be asked for it."""
    found = ["cuda"] if op in ops.NATIVE_OPS and not triton else []
    return found + (["triton"] if op in ops.TRITON_OPS and not triton_ops.missing() else [])
