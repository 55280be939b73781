"""The shapes of each operator in the networks, and what it must move and compute there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..roofline.kernels import SFU_PER_ACTIVATION, Kernel
from ..sized_blocks import Conv, SizedBlock, elements

#: A tensor argument to be drawn: its shape after the batch, and what it is.
Drawn = tuple[str, tuple[int, ...]]
_EPS = 1e-3  # the paper's


@dataclass(frozen=True)
class Case:
    """An operator at one shape. ``arguments``: in the order of the operator's schema, tensors to be
    drawn as (kind, shape) with kind "map" or "rows" (with a batch in front), "weight", "bias" or
    the name of a norm's vector, in a list for a norm; all else as it is."""

    op: str
    name: str
    arguments: tuple[Any, ...]
    work: Kernel

    def draw(
        self, batch: int, dtype: torch.dtype, device: torch.device, random: torch.Generator
    ) -> tuple[Any, ...]:
        """Fresh random arguments, maps and weights in channels_last."""
        return _drawn(self.arguments, lambda *it: _draw(*it, batch, dtype, device, random))

    def outline(self, batch: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        """What ``draw`` gives, without contents: tensors of the device "meta"."""
        return _drawn(self.arguments, lambda *it: _outline(*it, batch, dtype))

    def some_images(self, arguments: tuple[Any, ...], count: int) -> tuple[Any, ...]:
        """The arguments with only the first and the last of the images, ``count`` at most."""
        return tuple(
            first_and_last(value, count) if _is_drawn(s) and s[0] in ("map", "rows") else value
            for s, value in zip(self.arguments, arguments, strict=True)
        )

    def kernel(self, batch: int, size: int) -> Kernel:
        """Bytes and operations for ``batch`` images of ``size`` bytes an element, weights too."""
        weights = sum(
            elements(value[1]) * size
            for value in self.arguments
            if _is_drawn(value) and value[0] == "weight"
        )
        work = self.work
        return Kernel(
            self.op,
            work.bytes * batch * size + weights,
            work.tensor * batch,
            work.plain * batch,
            work.sfu * batch,
        )


def first_and_last(rows: Tensor, count: int) -> Tensor:
    """The first and the last rows, ``count`` together, or all if there are not so many."""
    if len(rows) <= count:
        return rows
    last = count // 2
    return torch.cat([rows[: count - last], rows[len(rows) - last :]])


def _is_drawn(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)


def _drawn(arguments: Iterable[Any], draw: Callable[[str, tuple[int, ...]], Tensor]) -> tuple:
    """The arguments with ``draw`` of what is to be drawn, in a norm's list too."""
    return tuple(
        list(_drawn(value, draw))
        if isinstance(value, list)
        else draw(*value)
        if _is_drawn(value)
        else value
        for value in arguments
    )


def _with_batch(kind: str, shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    return (batch, *shape) if kind in ("map", "rows") else shape


def _draw(
    kind: str,
    shape: tuple[int, ...],
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    random: torch.Generator,
) -> Tensor:
    drawn = torch.randn(_with_batch(kind, shape, batch), generator=random, device=device)
    if kind == "weight":  # keeps the scale of what it is applied to
        drawn *= elements(shape[1:]) ** -0.5
    elif kind == "variance":
        drawn.square_().add_(0.5)
    return drawn.to(dtype, memory_format=_format(drawn))


def _outline(kind: str, shape: tuple[int, ...], batch: int, dtype: torch.dtype) -> Tensor:
    empty = torch.empty(_with_batch(kind, shape, batch), device="meta")
    return empty.to(dtype, memory_format=_format(empty))


def _format(tensor: Tensor) -> torch.memory_format:
    return torch.channels_last if tensor.dim() == 4 else torch.contiguous_format


def of_blocks(suite: str, blocks: Iterable[SizedBlock]) -> list[Case]:
    """The distinct cases of a suite in these blocks, in order of appearance."""
    found: dict[str, Case] = {}
    for block in blocks:
        case = SUITES[suite](block)
        if case is not None:
            found.setdefault(case.name, case)
    return list(found.values())


def of_text(suite: str, text: str) -> Case:
    """The case that a ``--shape`` names. Raises ValueError for one that is not understood, or not
    of this suite."""
    parts = dict(re.findall(r"([a-z])(\d+)", text))
    if not parts or ",".join(f"{k}{v}" for k, v in parts.items()) != text:
        raise ValueError(
            f"--shape {text!r}: letters and numbers such as c512,h24,k3,s1 were expected"
        )
    n = {key: int(value) for key, value in parts.items()}
    c, h = n.get("c", 64), n.get("h", 32)
    w, k, s = n.get("w", h), n.get("k", 3), n.get("s", 1)
    e, o = n.get("e", 4 * c), n.get("o", c)
    hidden = n.get("r", max(1, c // 4))
    here = (c, h, w)
    skip = s == 1 and o == c
    if suite == "stem":
        block = SizedBlock(text, "ConvBNAct", "stem", (_conv(here, o, k, s, "silu"),), 0, False)
    elif suite == "conv":
        block = SizedBlock(text, "ConvBNAct", "block", (_conv(here, o, k, s, "silu"),), 0, skip)
    elif suite == "head":
        block = SizedBlock(text, "ConvBNAct", "head", (_conv(here, o, 1, 1, "silu"),), 0, False)
    elif suite == "fused_mbconv":
        expand = _conv(here, e, k, s, "silu")
        convs = expand, _conv(expand.outputs, o, 1, 1, "none")
        block = SizedBlock(text, "FusedMBConv", "block", convs, 0, skip)
    else:
        c, e = (n.get("c", 64), e) if suite == "expand_depthwise" else (c, c)
        first = _conv((c, h, w), e, 1, 1, "silu")
        middle = _conv(first.outputs, e, k, s, "silu", depthwise=True)
        convs = first, middle, _conv(middle.outputs, o, 1, 1, "none")
        block = SizedBlock(text, "MBConv", "block", convs, hidden, suite == "project" and "o" in n)
    case = SUITES[suite](block)
    if case is None:
        raise ValueError(f"--shape {text!r} makes no case of {suite}")
    return case


def _conv(
    inputs: tuple[int, int, int], outputs: int, k: int, s: int, act: str, depthwise: bool = False
) -> Conv:
    padding = (k // 2,) * 4
    size = [(n + 2 * (k // 2) - k) // s + 1 for n in inputs[1:]]
    return Conv(inputs, (outputs, *size), k, s, padding, act, depthwise)


def _sfu(*convs: Conv) -> float:
    return sum(SFU_PER_ACTIVATION * elements(c.outputs) for c in convs if c.act == "silu")


def _weight(conv: Conv) -> Drawn:
    channels = 1 if conv.depthwise else conv.inputs[0]
    return "weight", (conv.outputs[0], channels, conv.kernel, conv.kernel)


def _weight_and_norm(conv: Conv) -> tuple[Drawn, None, list[Drawn], float]:
    """A convolution as the ops take it: weight, no bias, norm, eps; of the networks' dtype."""
    vectors = [(name, (conv.outputs[0],)) for name in ("mean", "variance", "gamma", "beta")]
    return _weight(conv), None, vectors, _EPS


def _geometry(conv: Conv) -> tuple[list[int], list[int]]:
    return [conv.stride, conv.stride], list(conv.padding)


def _text(conv: Conv) -> str:
    c, h, w = conv.inputs
    text = f"{c}x{h}x{w}" if conv.depthwise else f"{c}x{h}x{w} to {conv.outputs[0]}"
    return f"{text}, k{conv.kernel} s{conv.stride}"


def _moved(*shapes: tuple[int, ...]) -> float:
    return float(sum(map(elements, shapes)))


def _dense(
    op: str, block: SizedBlock, conv: Conv, residual: Any, tail: tuple, moved: float
) -> Case:
    name = _text(conv) + (" + residual" if residual is not None else "")
    arguments = (("map", conv.inputs), *_weight_and_norm(conv), *tail)
    work = Kernel(op, moved, tensor=2.0 * conv.macs, sfu=_sfu(conv))
    return Case(op, name, arguments, work)


def _stem(block: SizedBlock) -> Case | None:
    if block.role != "stem":
        return None
    conv = block.convs[0]
    tail = (*_geometry(conv), conv.act)
    return _dense("stem", block, conv, None, tail, _moved(conv.inputs, conv.outputs))


def _convolution(block: SizedBlock) -> Case | None:
    """The Fused-MBConv of expansion 1, and the expanding half of the others."""
    if block.role != "block" or block.convs[0].depthwise or block.kind == "MBConv":
        return None
    conv = block.convs[0]
    skip = block.residual and len(block.convs) == 1
    residual = ("map", conv.outputs) if skip else None
    moved = _moved(conv.inputs, conv.outputs) + (elements(conv.outputs) if skip else 0)
    tail = (residual, *_geometry(conv), conv.act)
    return _dense("conv_bias_act", block, conv, residual, tail, moved)


def _head(block: SizedBlock) -> Case | None:
    if block.role != "head":
        return None
    conv = block.convs[0]
    moved = _moved(conv.inputs, conv.outputs[:1])
    return _dense("conv_act_pool", block, conv, None, (conv.act,), moved)


def _fused_mbconv(block: SizedBlock) -> Case | None:
    if block.kind != "FusedMBConv" or block.se_hidden:
        return None
    expand, project = block.convs
    name = f"{_text(expand)} to {project.outputs[0]}" + (" + residual" if block.residual else "")
    arguments = (
        ("map", expand.inputs),
        *_weight_and_norm(expand),
        *_weight_and_norm(project),
        block.residual,
        *_geometry(expand),
        expand.act,
    )
    flops = 2.0 * (expand.macs + project.macs)
    moved = _moved(expand.inputs, project.outputs)
    work = Kernel("fused_mbconv", moved, tensor=flops, sfu=_sfu(expand))
    return Case("fused_mbconv", name, arguments, work)


def _depthwise(block: SizedBlock) -> Case | None:
    conv = next((c for c in block.convs if c.depthwise), None)
    if conv is None:
        return None
    given = ("map", conv.inputs), *_weight_and_norm(conv)
    arguments = (*given, *_geometry(conv), conv.act, True)
    moved = _moved(conv.inputs, conv.outputs, conv.outputs[:1])
    work = Kernel("depthwise_bias_act", moved, plain=2.0 * conv.macs, sfu=_sfu(conv))
    return Case("depthwise_bias_act", _text(conv), arguments, work)


def _expand_depthwise(block: SizedBlock) -> Case | None:
    if len(block.convs) != 3 or not block.convs[1].depthwise:
        return None
    expand, conv, _ = block.convs
    name = f"{expand.inputs[0]} to {_text(conv)}"
    arguments = (
        ("map", expand.inputs),
        *_weight_and_norm(expand),
        *_weight_and_norm(conv),
        *_geometry(conv),
        conv.act,
        True,
    )
    work = Kernel(
        "expand_depthwise",
        _moved(expand.inputs, conv.outputs, conv.outputs[:1]),
        tensor=2.0 * expand.macs,
        plain=2.0 * conv.macs,
        sfu=_sfu(expand, conv),
    )
    return Case("expand_depthwise", name, arguments, work)


def _gate(block: SizedBlock) -> Case | None:
    if not block.se_hidden:
        return None
    m, r = block.convs[-1].inputs[0], block.se_hidden
    arguments = (
        ("rows", (m,)),
        ("weight", (r, m)),
        ("bias", (r,)),
        ("weight", (m, r)),
        ("bias", (m,)),
        "silu",
        "sigmoid",
    )
    work = Kernel("squeeze_excite_gate", 2.0 * m, plain=4.0 * m * r)
    return Case("squeeze_excite_gate", f"{m} to {r}", arguments, work)


def _project(block: SizedBlock) -> Case | None:
    if not block.se_hidden:
        return None
    conv = block.convs[-1]
    residual = ("map", conv.outputs) if block.residual else None
    name = _text(conv) + (" + residual" if block.residual else "")
    arguments = (
        ("map", conv.inputs),
        ("rows", (conv.inputs[0],)),
        *_weight_and_norm(conv),
        residual,
        conv.act,
    )
    passes = 2 if block.residual else 1
    moved = _moved(conv.inputs, conv.inputs[:1]) + passes * elements(conv.outputs)
    work = Kernel("gated_project", moved, tensor=2.0 * conv.macs)
    return Case("gated_project", name, arguments, work)


SUITES: dict[str, Callable[[SizedBlock], Case | None]] = {
    "depthwise": _depthwise,
    "expand_depthwise": _expand_depthwise,
    "stem": _stem,
    "gate": _gate,
    "conv": _convolution,
    "fused_mbconv": _fused_mbconv,
    "project": _project,
    "head": _head,
}
#: The op that each measures.
OP_OF = {
    "depthwise": "depthwise_bias_act",
    "expand_depthwise": "expand_depthwise",
    "stem": "stem",
    "gate": "squeeze_excite_gate",
    "conv": "conv_bias_act",
    "fused_mbconv": "fused_mbconv",
    "project": "gated_project",
    "head": "conv_act_pool",
}
