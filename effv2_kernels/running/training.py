"""A described block in training: one autograd Function, which keeps what only it can know to keep.

``BlockTrainer`` decides (``usable``) and computes (``run``). Whether a norm takes the statistics of
the batch is the norm's own affair, as in PyTorch: frozen norms in a training model, and a model in
evaluation whose gradients are asked for, run here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import is_exporting, is_one_of_many, is_transformed
from ..blocks import Block, ConvNorm, convs_of, gates_of, leaves_of, plus_input, se_of
from ..engines import aten
from .freshness import PLAIN_TENSORS
from .inference import autocasts
from .structure import Watch
from .training_calls import CALLS, SLOTS, Call


class BlockTrainer:
    """Trains one block on our ops. ``watched``: the modules whose own forward is bypassed."""

    def __init__(self, block: Block, watched: Watch):
        self.block = block
        self.branch = replace(block, residual=False)
        self.watch = watched
        self.leaves = tuple(leaves_of(block))
        self.convs = tuple(part for _, part in convs_of(block))

    def usable(self, x: Tensor) -> bool:
        """Whether our ops give what the original forward would, here and now."""
        if not isinstance(x, Tensor) or x.dim() != 4 or is_exporting():
            return False
        if torch.compiler.is_compiling():
            return self._unchanged() and self.watch.has_its_children() and self._fits(x)
        return (
            type(x) in PLAIN_TENSORS
            and not is_transformed()
            and self.watch.unchanged_in_training()
            and all(map(_is_plain, self.leaves))
            and self._fits(x)
        )

    @torch.compiler.assume_constant_result
    def _unchanged(self) -> bool:
        return self.watch.unchanged_in_training() and all(map(_is_plain, self.leaves))

    def _fits(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.is_floating_point()
            and x.shape[1] == self.convs[0].conv.in_channels
            and x.shape[0] > 0  # of no images PyTorch's norm makes something of its own
            and all(_agrees(part, x) for part in self.convs)
            and all(_is_in_dtype(gate, x) for gate in gates_of(self.block))
            and not (x.shape[0] == 1 and self._has_one_value(x))
        )

    def _has_one_value(self, x: Tensor) -> bool:
        """Whether a norm would take statistics of a single value, for which PyTorch has its own
        error: the original forward raises it."""
        sizes = zip(self.convs, self._sizes(x), strict=True)
        return any(_of_batch(part.norm) and height * width == 1 for part, (height, width) in sizes)

    def _sizes(self, x: Tensor) -> Iterator[tuple[int, int]]:
        """Height and width of each convolution's output."""
        size = x.shape[2], x.shape[3]
        for part in self.convs:
            size = aten.size_after(size, part.conv.kernel_size, part.stride, part.padding)
            yield size

    def run(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W) in any memory format -> (N, O, H', W'), channels_last."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if autocasts(device) else x.dtype
        if x.dtype == dtype:
            return self._apply(self.block, x)
        y = self._apply(self.branch, x.to(dtype))
        return plus_input(self.block, y, x) if self.block.residual else y

    def _apply(self, block: Block, x: Tensor) -> Tensor:
        call = CALLS[type(block)](block)
        mask = _drop_path(self.block, x) if self.block.residual else None
        parameters = [t for part in self.convs for t in _parameters(part)]
        se = se_of(block)
        if se is not None:
            parameters += (se.reduce.weight, se.reduce.bias, se.expand.weight, se.expand.bias)
        if torch.compiler.is_compiling():
            # A graph's buffers move outside of the Function; nothing checkpoints in there.
            out, *coefficients = _Block.apply(call, None, x, mask, *parameters)
            self._move(x, coefficients)
            return out
        return _Block.apply(call, self._move, x, mask, *parameters)

    def _move(self, x: Tensor, coefficients: Sequence[Tensor]) -> None:
        """The norms' running statistics, as ``nn.BatchNorm2d`` moves them."""
        for part, size, found in zip(self.convs, self._sizes(x), coefficients, strict=True):
            norm = part.norm
            if not (norm.training and norm.track_running_stats):
                continue
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
            if norm.running_mean is None or norm.running_var is None:
                continue
            share = 0.0 if norm.momentum is None else norm.momentum
            if norm.momentum is None and norm.num_batches_tracked is not None:
                share = 1.0 / float(norm.num_batches_tracked)
            values = x.shape[0] * size[0] * size[1]
            _towards(norm.running_mean, found[0], share)
            _towards(norm.running_var, found[1] * (values / (values - 1)), share)


class _Block(torch.autograd.Function):
    """A block's training op, and its backward op, for autograd."""

    @staticmethod
    def forward(ctx: Any, call: Call, move: Any, x: Tensor, mask: Tensor | None, *parameters: Any):
        out, *kept = call.forward(x, mask, parameters)
        coefficients = kept[1 : 2 * call.convs : 2]
        if move is not None:
            # Before anything is saved: where a checkpoint recomputes, it stops at the last tensor
            # that is saved, and the buffers of the unpatched model have moved twice by then.
            move(x, coefficients)
        ctx.call = call
        ctx.parameters = len(parameters)
        ctx.frozen = [i for i in range(call.convs) if parameters[SLOTS * i + 4] is not None]
        saved = [_saved(p, i, call.convs) for i, p in enumerate(parameters)]
        ctx.save_for_backward(x, mask, *saved, *kept)
        ctx.set_materialize_grads(False)
        if move is not None:
            return out
        ctx.mark_non_differentiable(*coefficients)
        return (out, *coefficients)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple:
        nothing = (None,) * (4 + ctx.parameters)
        if grad is None:
            return nothing
        if not torch.compiler.is_compiling() and is_one_of_many(grad):
            raise RuntimeError(
                "effv2's training ops take one gradient at a time, not is_grads_batched: "
                "patch(model, training=False), or unpatch(model), for that"
            )
        x, mask, *rest = ctx.saved_tensors
        parameters, kept = list(rest[: ctx.parameters]), rest[ctx.parameters :]
        for i in ctx.frozen:
            mean, variance, *_ = kept[2 * i + 1]
            parameters[SLOTS * i + 4 : SLOTS * i + 6] = mean, variance
        needs = ctx.needs_input_grad
        wanted = [needs[2], *needs[4:]]
        with torch.no_grad():
            found = ctx.call.backward(grad, x, mask, parameters, kept, wanted)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = _Once.apply(len(found), *found, grad, x, *parameters)
        gradients = iter(found)
        of_x, *of_parameters = (next(gradients) if want else None for want in wanted)
        return (None, None, of_x, None, *of_parameters)


class _Once(torch.autograd.Function):
    """Gradients that have none themselves: who asks is told."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Any):
        return tuple(t.clone() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Any):
        raise RuntimeError(
            "effv2's training ops have no second derivative (a gradient of a gradient was asked "
            "for): patch(model, training=False), or unpatch(model), for that"
        )


def _saved(parameter: Tensor | None, slot: int, convs: int) -> Tensor | None:
    """What the backward needs of a parameter. Not the running statistics, which may move before it:
    they are in what is kept. Of a bias or a beta, which may change before it too, only what it is
    like: its memory without its count of changes."""
    if parameter is None or torch.compiler.is_compiling():
        return None if slot < SLOTS * convs and slot % SLOTS >= 4 else parameter
    if slot >= SLOTS * convs:  # of the gate: weight, bias, weight, bias
        return parameter.data if (slot - SLOTS * convs) % 2 == 1 else parameter
    if slot % SLOTS >= 4:
        return None
    return parameter.data if slot % SLOTS in (1, 3) else parameter


def _parameters(part: ConvNorm) -> tuple[Tensor | None, ...]:
    """weight, bias, gamma, beta; mean and variance of a norm that is frozen."""
    conv, norm = part.conv, part.norm
    gamma, beta = norm.weight, norm.bias
    if (gamma is None) != (beta is None):  # the ops know both or neither
        one = beta if gamma is None else gamma
        gamma = torch.ones_like(one) if gamma is None else gamma
        beta = torch.zeros_like(one) if beta is None else beta
    frozen = (None, None) if _of_batch(norm) else (norm.running_mean, norm.running_var)
    return conv.weight, conv.bias, gamma, beta, *frozen


def _of_batch(norm: nn.BatchNorm2d) -> bool:
    """Whether it normalises by the statistics of the batch."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def _agrees(part: ConvNorm, x: Tensor) -> bool:
    """Whether PyTorch computes conv and norm in x's dtype, or in autocast's."""
    weight, norm = part.conv.weight, part.norm
    if weight.device != x.device:
        return False
    dtype = x.dtype
    if autocasts(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        if torch.float64 in (weight.dtype, x.dtype):
            return False
    elif weight.dtype != dtype:
        return False
    vectors = norm.weight, norm.bias, norm.running_mean, norm.running_var
    if any(v is not None and v.requires_grad for v in vectors[2:]):
        return False
    kinds = {vector.dtype for vector in vectors if vector is not None}
    return (
        len(kinds) == 0
        or kinds == {dtype}
        or (kinds == {torch.float32} and dtype in (torch.bfloat16, torch.float16))
    )


def _is_in_dtype(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether PyTorch computes a convolution of the gate with x's neighbours."""
    return autocasts(x.device.type) or conv.weight.dtype == x.dtype


def _is_plain(leaf: nn.Module) -> bool:
    """Whether its tensors are no subclass's, which may compute otherwise."""
    own = (*leaf._parameters.values(), *leaf._buffers.values())
    return all(tensor is None or type(tensor) in PLAIN_TENSORS for tensor in own)


def _drop_path(block: Block, x: Tensor) -> Tensor | None:
    """What the block's own drop path multiplies each image by, (N,), or None where it does nothing.
    It is called on ones, so that it draws the numbers that it draws unpatched."""
    if block.drop_path is None or not block.drop_path.training:
        return None
    ones = x.new_ones((x.shape[0], 1, 1, 1))
    kept = block.drop_path(ones)
    return None if kept is ones else kept.flatten()


def _towards(running: Tensor, found: Tensor, share: float) -> None:
    """running <- (1 - share) running + share found, in the wider dtype."""
    if running.dtype == found.dtype:
        running.lerp_(found, share)
    else:
        running.copy_(torch.lerp(running.to(found.dtype), found, share))
