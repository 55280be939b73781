"""The Triton kernels that have a launch to choose, by name. Each module has ``Shape`` and
``Choice`` (frozen dataclasses), ``candidates``, ``fits``, ``cost``, ``shared_bytes`` and
``modelled``."""

from __future__ import annotations

from types import ModuleType

from . import conv, conv_act_pool, fused_mbconv
from . import depthwise as depthwise_triton

FAMILIES: dict[str, ModuleType] = {
    module.KERNEL: module for module in (conv, fused_mbconv, conv_act_pool, depthwise_triton)
}
