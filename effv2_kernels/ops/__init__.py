"""The ops of namespace ``effv2``, one file an op: schema, check, fake, and every engine that can
compute it, in the order in which they are asked.

Importing this package registers them all; ``torch.ops.effv2`` then has them. On a GPU an op runs on
the first engine that has no reason not to (``Op.choose``): it was built, it is not switched off, it
computes these arguments, and nothing after it is expected to be faster. ``torch.ops.effv2_triton``
has the same ops for whoever asks for Triton by name, on the CPU too where Triton interprets.

A convolution is given as it lies in its modules: weight, bias, norm and eps, prefixed where an op
has two. weight: (O, I / groups, kh, kw). bias: (O,) or None. norm: (mean, variance, gamma, beta) of
the batch norm behind it, in evaluation; (mean, variance) if it has no affine part; () where there
is none, or where it is folded into weight and bias. All of norm has one dtype, and bias its own:
float32 or weight's.
"""

from __future__ import annotations

from ..engines import native
from ..engines import triton as triton_ops
from . import (
    conv_act_pool,
    conv_bias_act,
    conv_bn_act_train,
    depthwise_bias_act,
    expand_depthwise,
    fused_mbconv,
    fused_mbconv_train,
    gated_project,
    mbconv_train,
    squeeze_excite_gate,
    stem,
)
from ._library import ON_GPU, TRITON_INTERPRETED
from ._op import Chosen, Engine, Engines, Named, Op, Replayed, names, tell
from ._training import TrainingOp

OPS: dict[str, Op] = {
    module.OP.name: module.OP
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

TRAINING_OPS: dict[str, TrainingOp] = {
    module.OP.name: module.OP for module in (conv_bn_act_train, fused_mbconv_train, mbconv_train)
}

#: The ops that the native library has a kernel for, and that Triton has one for, where they are.
NATIVE_OPS = frozenset(op.name for op in OPS.values() if op.has("cuda") and native.LOADED)
TRITON_OPS = frozenset(op.name for op in OPS.values() if op.has("triton"))

__all__ = [
    "NATIVE_OPS",
    "ON_GPU",
    "OPS",
    "TRAINING_OPS",
    "TRITON_INTERPRETED",
    "TRITON_OPS",
    "Chosen",
    "Engine",
    "Engines",
    "Named",
    "Op",
    "Replayed",
    "TrainingOp",
    "names",
    "tell",
    "triton_ops",
]
