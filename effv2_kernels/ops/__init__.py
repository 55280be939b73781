"""The ops of namespace ``effv2``, one file a family: schema, check, fake, aten, CPU.

Importing this package registers them all; ``torch.ops.effv2`` then has them. The native library,
where it was built, brings its CUDA kernels first, and ops without one run ATen on the GPU.
"""

from __future__ import annotations

from .. import _native, cuda
from . import (
    conv_act_pool,
    conv_bias_act,
    depthwise_bias_act,
    expand_depthwise,
    fused_mbconv,
    gated_project,
    squeeze_excite_gate,
    stem,
)
from ._library import has_kernel, register_cuda

FAMILIES = {
    module.NAME: module
    for module in (
        stem,
        conv_bias_act,
        fused_mbconv,
        depthwise_bias_act,
        expand_depthwise,
        squeeze_excite_gate,
        gated_project,
        conv_act_pool,
    )
}

NATIVE = _native.load()
NATIVE_OPS = frozenset(cuda.KERNELS) | {name for name in FAMILIES if has_kernel(name, "CUDA")}
for _name, _family in FAMILIES.items():
    _native_first = [cuda.KERNELS[_name]] if _name in cuda.KERNELS else []
    register_cuda(_name, _family.fake, [*_native_first, _family.aten])
