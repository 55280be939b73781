"""Fused kernels for EfficientNetV2: ``patch(model)`` runs a timm, torchvision or reference network
on them, with the same numbers and the same checkpoints."""

from __future__ import annotations

from .backends import BackendStatus, backends
from .capture import capture
from .patch import is_patched, patch, refresh, unpatch
from .report import Patched, PatchReport, Skipped
from .version import __version__
from .warmup import warmup

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
