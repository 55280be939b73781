"""The ops of namespace ``effv2``, one file a family: schema, check, fake, aten, CPU.

Importing this package registers them all; ``torch.ops.effv2`` then has them. The native library,
where it was built, brings its CUDA kernels first, then come Triton's, and ops without either run
ATen on the GPU. ``torch.ops.effv2_triton`` has the same ops with Triton first, for whoever asks for
it by name, on the CPU too where Triton interprets. What is switched off (``launch/switched_off``)
declines, and the next in line runs.

A convolution is given as it lies in its modules: weight, bias, norm and eps, prefixed where an op
has two. weight: (O, I / groups, kh, kw). bias: (O,) or None. norm: (mean, variance, gamma, beta) of
the batch norm behind it, in evaluation; (mean, variance) if it has no affine part; () where there
is none, or where it is folded into weight and bias. All of norm has one dtype, and bias its own:
float32 or weight's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .. import _native, cuda, triton_ops
from ..launch import switched_off
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
from ._library import (
    NAMESPACE,
    brought,
    first_that_can,
    has_kernel,
    register_cuda,
    register_triton,
)

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
# Whether Triton's interpreter was asked for when the ops were registered.
TRITON_INTERPRETED = triton_ops.interpreted()


# What CUDA tensors run, past the dispatcher and the checks: for calls whose like was checked.
ON_CUDA: dict[str, Callable] = {}


def _found(name: str, by_name: bool = False, **engines: Mapping[str, Callable]) -> list[Callable]:
    return [
        switched_off.obeying(name, engine, table[name], by_name=by_name)
        for engine, table in engines.items()
        if name in table
    ]


for _name, _family in FAMILIES.items():
    _whole = has_kernel(_name, "CUDA")
    # What the native library brought whole stays as it is, unless it may have to decline.
    if not _whole or switched_off.named(_name, "cuda"):
        _native_kernels = {_name: brought(_name)} if _whole else cuda.KERNELS
        _automatic = _found(_name, cuda=_native_kernels, triton=triton_ops.KERNELS)
        register_cuda(_name, _family.fake, [*_automatic, _family.aten])
        ON_CUDA[_name] = first_that_can(_name, [*_automatic, _family.aten])
    else:
        ON_CUDA[_name] = getattr(getattr(torch.ops, NAMESPACE), _name).default
    _explicit = _found(_name, by_name=True, triton=triton_ops.EXPLICIT)
    register_triton(
        _family.SCHEMA,
        fake=_family.fake,
        aten=_family.aten,
        implementations=[*_explicit, _family.aten],
        devices=("CUDA", "CPU") if TRITON_INTERPRETED else ("CUDA",),
    )
