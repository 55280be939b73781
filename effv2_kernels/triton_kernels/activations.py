"""The activations of ``effv2_kernels.activations``, on a float32 tile in registers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, ACT: tl.constexpr, FAST: tl.constexpr):
    """x: float32. Comparisons are written so that NaN goes through, as in PyTorch.

    FAST: SiLU by ``tanh.approx``, one instruction of the special-function unit instead of two;
    good to 2^-11, which is for 16-bit results only. The unit, and not the tensor cores, bounds
    the kernels that keep an expanded tensor on the chip.
    """
    if ACT == "silu":
        if FAST:
            half = 0.5 * x
            tanh = tl.inline_asm_elementwise(
                "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
            )
            x = half * tanh + half
        else:
            x = x / (1.0 + tl.exp(-x))
    elif ACT == "relu":
        x = tl.where(x < 0.0, 0.0, x)
    elif ACT == "relu6":
        x = tl.where(x < 0.0, 0.0, tl.where(x > 6.0, 6.0, x))
    elif ACT == "hardswish":
        gate = x + 3.0
        gate = tl.where(gate < 0.0, 0.0, tl.where(gate > 6.0, 6.0, gate))
        x = x * gate * (1.0 / 6.0)
    elif ACT == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        tl.static_assert(ACT == "none")
    return x
