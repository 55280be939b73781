"""How a described block runs in inference: the ops it becomes, and when it may.

``BlockRunner`` decides (``usable``) and computes (``run``). In eager mode the folded weights come
from a cache that is checked before every use; while a graph is traced (``torch.compile``,
``torch.export``) they are folded inside the graph, from the live weights, so that a compiled model
is never stale either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from operator import attrgetter, is_, is_not, methodcaller
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module

from . import cpu, ops
from .blocks import Block, ConvBNAct, FusedMBConv, MBConv, leaves_of
from .folding import Stamp, WeightCache, Weights, fold

DISPATCHED = torch.ops.effv2
TRITON = torch.ops.effv2_triton


def _gate_in_place(x: Tensor, gate: Tensor, *rest: Any) -> Tensor:
    """``gated_project`` on a CPU for a map that nobody else holds: saves the gated copy."""
    *conv, residual, act = rest
    x.mul_(gate[:, :, None, None])
    return cpu.conv(x, *conv, act=act, residual=residual)


# The CPU implementations themselves, for calls that nobody watches and that were checked before.
_CPU = {name: getattr(family, "cpu", family.aten) for name, family in ops.FAMILIES.items()}
_CPU["gated_project"] = _gate_in_place
DIRECT = SimpleNamespace(**{name: SimpleNamespace(default=f) for name, f in _CPU.items()})
# The same for CUDA: the dispatcher's way into Python and back is much of a small op's host time.
DIRECT_CUDA = SimpleNamespace(
    **{name: SimpleNamespace(default=function) for name, function in ops.ON_CUDA.items()}
)

_TRAINING = attrgetter("training")
_FORWARD = methodcaller("get", "forward")
_STATISTICS = methodcaller("get", "running_mean"), methodcaller("get", "running_var")
# By identity: comparing a tensor with None costs as much as a small kernel.
_NOTHING = repeat(None)
_GEOMETRY = attrgetter("stride", "padding", "dilation", "groups", "padding_mode")
# Kinds whose forward is the same in training and in evaluation.
_SAME_IN_EVERY_MODE = (nn.Conv2d, nn.Sequential, nn.Identity, nn.SiLU, nn.ReLU, nn.Sigmoid)
_DEVICES = ("cpu", "cuda", "meta")
_MOST_SHAPES = 64
_GLOBAL_HOOKS = (nn_module._global_forward_hooks, nn_module._global_forward_pre_hooks)
_PLAIN_TENSORS = (Tensor, nn.Parameter, FakeTensor)


def conv_bn_act(effv2: Any, block: ConvBNAct, w: Weights, x: Tensor) -> Tensor:
    conv = block.conv
    if block.is_stem:
        return effv2.stem.default(x, *w.conv, conv.stride, conv.padding, conv.act)
    residual = x if block.residual else None
    return effv2.conv_bias_act.default(x, *w.conv, residual, conv.stride, conv.padding, conv.act)


def pooled_head(effv2: Any, block: ConvBNAct, w: Weights, x: Tensor) -> Tensor:
    return effv2.conv_act_pool.default(x, *w.conv, block.conv.act)


def fused_mbconv(effv2: Any, block: FusedMBConv, w: Weights, x: Tensor) -> Tensor:
    expand, project = block.expand, block.project
    if block.se is None and project.act == "none":
        return effv2.fused_mbconv.default(
            x, *w.expand, *w.project, block.residual, expand.stride, expand.padding, expand.act
        )
    y = effv2.conv_bias_act.default(x, *w.expand, None, expand.stride, expand.padding, expand.act)
    pooled = y.mean((2, 3)) if block.se is not None else None
    return _gate_and_project(effv2, block, w, y, pooled, x)


def mbconv(effv2: Any, block: MBConv, w: Weights, x: Tensor) -> Tensor:
    expand, depthwise = block.expand, block.depthwise
    squeeze = block.se is not None
    geometry = depthwise.stride, depthwise.padding, depthwise.act, squeeze
    if expand is None:
        y, pooled = effv2.depthwise_bias_act.default(x, *w.depthwise, *geometry)
    elif expand.act == depthwise.act:
        y, pooled = effv2.expand_depthwise.default(x, *w.expand, *w.depthwise, *geometry)
    else:
        y = effv2.conv_bias_act.default(
            x, *w.expand, None, expand.stride, expand.padding, expand.act
        )
        y, pooled = effv2.depthwise_bias_act.default(y, *w.depthwise, *geometry)
    return _gate_and_project(effv2, block, w, y, pooled, x)


def _gate_and_project(
    effv2: Any, block: MBConv | FusedMBConv, w: Weights, y: Tensor, pooled: Tensor | None, x: Tensor
) -> Tensor:
    residual = x if block.residual else None
    project, se = block.project, block.se
    if se is None:
        return effv2.conv_bias_act.default(
            y, *w.project, residual, project.stride, project.padding, project.act
        )
    gate = effv2.squeeze_excite_gate.default(pooled, *w.se, se.act, se.gate)
    return effv2.gated_project.default(y, gate, *w.project, residual, project.act)


Sequence = Callable[[Any, Block, Weights, Tensor], Tensor]
SEQUENCES: dict[type, Sequence] = {
    ConvBNAct: conv_bn_act,
    FusedMBConv: fused_mbconv,
    MBConv: mbconv,
}


def op_names(block: Block, *, pooled: bool = False) -> tuple[str, ...]:
    """The ops of the block's sequence, in order of execution."""
    if isinstance(block, ConvBNAct):
        return ("conv_act_pool" if pooled else "stem" if block.is_stem else "conv_bias_act",)
    if isinstance(block, FusedMBConv):
        if block.se is None and block.project.act == "none":
            return ("fused_mbconv",)
        first: tuple[str, ...] = ("conv_bias_act",)
    elif block.expand is None:
        first = ("depthwise_bias_act",)
    elif block.expand.act == block.depthwise.act:
        first = ("expand_depthwise",)
    else:
        first = ("conv_bias_act", "depthwise_bias_act")
    last = ("conv_bias_act",) if block.se is None else ("squeeze_excite_gate", "gated_project")
    return (*first, *last)


class _Check(threading.local):
    """What a model's forward, in this thread, found out for its whole group of blocks."""

    group: object = None
    stamp: Stamp | None = None
    known: bool = False


_CHECK = _Check()


@contextmanager
def checked(group: object, stamp: Stamp, known: bool) -> Iterator[None]:
    """Within it, the runners of ``group`` need not look whether their modules changed, nor, if
    ``stamp`` is ``known`` to match, whether the weights did that they folded under it."""
    _CHECK.group, _CHECK.stamp, _CHECK.known = group, stamp, known
    try:
        yield
    finally:
        _CHECK.group = _CHECK.stamp = None


class BlockRunner:
    """Runs one block on our ops. ``watched`` are the modules whose own forward is bypassed (the
    block's descendants): they must be as they were when the block was described, in eval mode and
    free of hooks, or the original forward runs. ``triton``: the ops are those of Triton."""

    def __init__(self, block: Block, watched: Watch, triton: bool = False):
        self.block = block
        self.branch = replace(block, residual=False)
        self.triton = triton
        self.cache = WeightCache(block, packs=not triton)
        self.watch = watched
        self.leaves = tuple(leaves_of(block))
        self.group: object = None
        self.first_conv = next(leaf for leaf in self.leaves if isinstance(leaf, nn.Conv2d))

    def usable(self, x: Tensor) -> bool:
        """Whether our ops give what the original forward would, here and now."""
        if not isinstance(x, Tensor) or x.dim() != 4 or records_gradient(x, self.leaves):
            return False
        if torch.compiler.is_compiling():
            return self._unchanged() and self.watch.traced() and self._dtype_agrees(x)
        return (
            type(x) in _PLAIN_TENSORS
            and not transformed()
            and (self._is_checked() or self.watch.unchanged())
            and self._dtype_agrees(x)
        )

    def _is_checked(self) -> bool:
        return self.group is not None and _CHECK.group is self.group

    @torch.compiler.assume_constant_result
    def _unchanged(self) -> bool:
        return self.watch.unchanged()

    def _dtype_agrees(self, x: Tensor) -> bool:
        weight = self.first_conv.weight
        if (
            x.device.type not in _DEVICES
            or x.device != weight.device
            or (x.is_cuda and weight.dtype == torch.float64)
        ):
            return False
        if autocasts(x.device.type):
            return weight.dtype != torch.float64 and x.dtype != torch.float64
        return x.dtype == weight.dtype

    def run(self, x: Tensor, sequence: Sequence | None = None) -> Tensor:
        """x: (N, C, H, W) in any memory format -> (N, O, H', W'), channels_last."""
        sequence = sequence or SEQUENCES[type(self.block)]
        device = x.device.type
        autocast = autocasts(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        if torch.compiler.is_compiling() or isinstance(x, FakeTensor) or device == "meta":
            named = TRITON if self.triton else DISPATCHED
            return self._apply(named, sequence, fold(self.block, dtype), x, dtype)
        group = _CHECK.stamp if self._is_checked() else None
        weights = self.cache.weights(x, dtype, group, known=group is not None and _CHECK.known)
        ops: Any = TRITON if self.triton else DISPATCHED
        if not self.triton and not watched():
            if weights.packed:
                ops = DIRECT
            elif x.is_cuda and (x.dtype, x.shape[1:]) in weights.taken:
                ops = DIRECT_CUDA
        with torch._C._AutoDispatchBelowAutograd():
            if not autocast:
                found = self._apply(ops, sequence, weights, x, dtype)
            else:
                with torch.autocast(device, enabled=False):
                    found = self._apply(ops, sequence, weights, x, dtype)
        if ops is DISPATCHED and len(weights.taken) < _MOST_SHAPES:
            weights.taken.add((x.dtype, x.shape[1:]))
        return found

    def _apply(
        self, ops: Any, sequence: Sequence, weights: Weights, x: Tensor, dtype: torch.dtype
    ) -> Tensor:
        if x.dtype == dtype or getattr(self.block, "is_stem", False):
            return sequence(ops, self.block, weights, x)
        y = sequence(ops, self.branch, weights, x.to(dtype))
        # As in PyTorch, a wider input makes the sum of the residual wider.
        return y + x if self.block.residual else y


class Watch:
    """Notices what makes the description of a block untrue: a child that was replaced, wrapped,
    hooked, given a forward or a geometry of its own, robbed of its statistics, or put into
    training mode.

    It is asked before every forward, hence the flat tuples and the loops that run in C, and hence
    the mode of a module whose forward does not depend on it is not looked at.
    """

    def __init__(self, links: Iterable[tuple[nn.Module, str]]):
        links = tuple(links)
        self._links = tuple((parent, name, parent._modules[name]) for parent, name in links)
        self._parents = tuple(parent._modules for parent, _ in links)
        self._names = tuple(name for _, name in links)
        self._children = tuple(parent._modules[name] for parent, name in links)
        self._kinds = list(map(type, self._children))
        self._containers = tuple({id(parent): parent for parent in self._parents}.values())
        self._sizes = list(map(len, self._containers))
        self._moody = tuple(c for c in self._children if type(c) not in _SAME_IN_EVERY_MODE)
        self._hooks = tuple(hooks for child in self._children for hooks in forward_hooks(child))
        self._forwards = tuple(map(_FORWARD, map(vars, self._children)))
        self._convs = tuple(c for c in self._children if isinstance(c, nn.Conv2d))
        self._geometry = list(map(_GEOMETRY, self._convs))
        self._gelus = tuple(c for c in self._children if isinstance(c, nn.GELU))
        self._approximations = [gelu.approximate for gelu in self._gelus]
        norms = (c for c in self._children if isinstance(c, nn.BatchNorm2d))
        self._buffers = tuple(norm._buffers for norm in norms)

    def traced(self) -> bool:
        """What a graph has to be guarded by: written for Dynamo to trace, where ``unchanged`` is a
        constant of the trace."""
        for parent, name, child in self._links:
            if getattr(parent, name) is not child or child.training:
                return False
        return True

    def unchanged(self) -> bool:
        return (
            not any(self._hooks)
            and True not in map(_TRAINING, self._moody)
            and all(map(is_, map(dict.get, self._parents, self._names), self._children))
            and list(map(type, self._children)) == self._kinds
            and list(map(len, self._containers)) == self._sizes
            and all(map(is_, map(_FORWARD, map(vars, self._children)), self._forwards))
            and list(map(_GEOMETRY, self._convs)) == self._geometry
            and [gelu.approximate for gelu in self._gelus] == self._approximations
            and all(_are_there(map(get, self._buffers)) for get in _STATISTICS)
            and not any(_GLOBAL_HOOKS)
        )


def _are_there(values: Iterable[Any]) -> bool:
    return all(map(is_not, values, _NOTHING))


def forward_hooks(module: nn.Module) -> tuple[dict, dict]:
    """The live dictionaries of the hooks that calling ``module`` would run where autograd does not
    record; where it does, our ops do not run."""
    return module._forward_hooks, module._forward_pre_hooks


def hooks_of(module: nn.Module) -> tuple[dict, ...]:
    """All hooks that calling ``module`` may run."""
    return (*forward_hooks(module), module._backward_hooks, module._backward_pre_hooks)


def autocasts(device: str) -> bool:
    """Whether autocast is on; "meta" has none, and PyTorch raises where it is asked."""
    return device != "meta" and torch.is_autocast_enabled(device)


def records_gradient(x: Tensor, leaves: tuple[nn.Module, ...]) -> bool:
    """Whether autograd would record this forward. An exported program is for inference."""
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False
    if x.requires_grad:
        return True
    for leaf in leaves:
        for parameter in leaf._parameters.values():
            if parameter is not None and parameter.requires_grad:
                return True
    return False


def transformed() -> bool:
    """Whether a functorch transform, forward-mode differentiation or ``torch.jit.trace``, which
    would take the folded weights for constants, is under way."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def watched() -> bool:
    """Whether a profiler or a dispatch mode is to see which ops run."""
    return torch.autograd._profiler_enabled() or torch._C._len_torch_dispatch_stack() > 0
