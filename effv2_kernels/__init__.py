"""Fused kernels for EfficientNetV2: ``patch(model)`` runs a timm, torchvision or reference network
on them, with the same numbers and the same checkpoints."""

from __future__ import annotations

from .patching.backends import BackendStatus, backends
from .patching.capture import capture
from .patching.patch import is_patched, patch, refresh, unpatch
from .patching.report import Patched, PatchReport, Skipped
from .patching.warmup import warmup
from .version import __version__

__all__ = [
    "BackendStatus",
    "Patched",
    "PatchReport",
    "Skipped",
    "__version__",
    "backends",
    "capture",
    "is_patched",
    "patch",
    "refresh",
    "unpatch",
    "warmup",
]
