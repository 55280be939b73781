"""From a module of one foreign library to a block description, or to a refusal with its reason.

Each adapter knows one library and nothing of kernels. A library is imported only where the user
has already loaded it: a model of a library that was never imported cannot exist.
"""

from __future__ import annotations

import sys
from types import ModuleType

from . import python_ref, timm, torchvision

_ADAPTERS: dict[str, ModuleType] = {
    "python_ref": python_ref,
    "timm": timm,
    "torchvision": torchvision,
}


def loaded() -> list[ModuleType]:
    """The adapters whose library is in use. Each has ``describe(module)``, giving a Block, a
    Refusal or None (not a candidate), and ``describe_ends(model)``, giving the model's stem and
    head, or None for a model that is not of this library's EfficientNet family."""
    return [adapter for name, adapter in _ADAPTERS.items() if name in sys.modules]
