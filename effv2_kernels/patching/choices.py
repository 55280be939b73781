"""Which engines run a block's ops, as dispatch chooses them, asked without running anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..blocks import Block, convs_of, se_of
from ..launch import targets
from ..launch.targets import Target
from ..running.sequences import SEQUENCES, Sequence, Weights, pooled_head

Shape = tuple[int, ...]
#: Batches that a report asks for where a choice may depend on it.
BATCHES = (1, 128)


@dataclass(frozen=True)
class Where:
    """Where a model runs: the device's type, the GPU (None: a CPU, or a fake tensor's GPU), whether
    Triton was asked for by name, and whether the native library is there, if that is no question.
    """

    device: str
    target: Target | None = None
    triton: bool = False
    built: bool | None = None


def here(device: torch.device, triton: bool) -> Where:
    gpu = device.type == "cuda" and torch.cuda.is_available()
    kind = device.type if device.type in ("cpu", "cuda") else "cpu"
    return Where(kind, targets.of_device(device) if gpu else None, triton)


Noted = list[tuple[ops.Op, ops.Chosen]]


def choices(
    block: Block, shape: Shape, dtype: torch.dtype, where: Where, *, pooled: bool = False
) -> Noted:
    """Each op of the block on an input of ``shape``, (N, C, H, W), in ``dtype``, and its engine;
    after an op that runs as two come those. ``pooled``: of a head whose mean is fused."""
    noted: Noted = []
    namespace = ops.Named(
        ops.OPS,
        where.device,
        lambda op, chosen: noted.append((op, chosen)),
        target=where.target,
        by_name=where.triton,
        built=where.built,
    )
    sequence: Sequence = pooled_head if pooled else SEQUENCES[type(block)]
    sequence(namespace, block, _outline(block, dtype), _empty(shape, dtype))
    return noted


def by_batch(
    block: Block, shape: Shape, dtype: torch.dtype, where: Where, *, pooled: bool = False
) -> tuple[tuple[str, ...], Noted]:
    """For a report: what runs each op, "op[engine]" or "op[engine] + op[engine]", and where it
    depends on the batch what runs it at each of BATCHES; and all that was chosen."""
    batches = BATCHES if where.device == "cuda" else BATCHES[:1]
    noted = [choices(block, (n, *shape[1:]), dtype, where, pooled=pooled) for n in batches]
    texts = [tuple(ops.names(one)) for one in noted]
    named = tuple(
        same[0]
        if len(set(same)) == 1
        else ", ".join(f"{text} at batch {n}" for text, n in zip(same, batches, strict=True))
        for same in zip(*texts, strict=True)
    )
    return named, [choice for one in noted for choice in one]


def aten_notes(noted: Noted, where: Where) -> Iterator[str]:
    """Why ops run through ATen where there might be a kernel: of each op and reason once."""
    if where.device != "cuda" and not where.triton:
        return
    told: set[str] = set()
    for op, chosen in noted:
        ops.tell(op, chosen, silently=True)
        if chosen.engine.name != "aten" or not chosen.reasons:
            continue
        why = "; ".join(f"{name}: {reason}" for name, reason in chosen.reasons)
        text = f"{op.name} runs through ATen ({why})"
        if text not in told:
            told.add(text)
            yield text


def _outline(block: Block, dtype: torch.dtype) -> Weights:
    """Weights of the right shapes, without contents."""
    convs: dict[str, Any] = {
        name: (_empty(part.conv.weight.shape, dtype), None, (), 0.0)
        for name, part in convs_of(block)
    }
    se = se_of(block)
    if se is None:
        return Weights(**convs)
    hidden, channels = se.reduce.weight.shape[:2]
    shapes = (hidden, channels), (hidden,), (channels, hidden), (channels,)
    first, first_bias, second, second_bias = (_empty(shape, dtype) for shape in shapes)
    return Weights(**convs, se=(first, first_bias, second, second_bias))


def _empty(shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")
