"""Notices that a model is no longer what was described."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from operator import attrgetter, is_, is_not, methodcaller
from types import NoneType
from typing import Any

from torch import Tensor, nn

from .. import _native
from .._torch import GLOBAL_BACKWARD_HOOKS, GLOBAL_HOOKS

_ADDRESS = Tensor.data_ptr
_EPS = attrgetter("eps")
_TRAINING = attrgetter("training")
_FORWARD = methodcaller("get", "forward")
_STATISTICS = methodcaller("get", "running_mean"), methodcaller("get", "running_var")
# By identity: comparing a tensor with None costs as much as a small kernel.
_NOTHING = repeat(None)
_SIDES = ("stride", "padding", "dilation", "groups", "padding_mode")
_GEOMETRY = attrgetter(*_SIDES)
# Kinds whose forward is the same in training and in evaluation.
_SAME_IN_EVERY_MODE = (nn.Conv2d, nn.Sequential, nn.Identity, nn.SiLU, nn.ReLU, nn.Sigmoid)
# How many are taken of a model: of what is another object at every call, though equal, there is
# always one more to take.
_SNAPSHOTS = 8
# Whose modules are known to write into nobody else's tensors.
_KNOWN_LIBRARIES = ("torch.nn.", "timm.", "torchvision.", "python_ref.")


class Snapshot:
    """Objects in dictionaries, dictionaries' sizes, and objects' types and ``__dict__``, as they
    are to be. It holds what it compares, so that nothing else can come to lie where that lay.

    A first look, by identity and in C++: what does not hold may still be equal, and where nothing
    was built nothing holds, so that whoever asks then looks for himself.
    """

    def __init__(
        self,
        items: Iterable[tuple[dict, str, Any]],
        sizes: Iterable[tuple[dict, int]],
        kinds: Iterable[tuple[Any, type, dict]] = (),
    ):
        self._items = tuple(chain.from_iterable(items))
        self._sizes = tuple(chain.from_iterable(sizes))
        self._kinds = tuple(chain.from_iterable(kinds))
        self._unchanged = _native.unchanged()

    def holds(self) -> bool:
        look = self._unchanged
        return look is not None and look(self._items, self._sizes, self._kinds)


class Watch:
    """Notices what makes the description of a block untrue: a child that was replaced, wrapped,
    hooked, given a forward or a geometry of its own, robbed of its statistics, or put into
    training mode.

    It is asked before every forward, hence the flat tuples and the loops that run in C, and hence
    the mode of a module whose forward does not depend on it is not looked at.
    """

    def __init__(self, links: Iterable[tuple[nn.Module, str]]):
        self._links = tuple((parent, name, _child(parent, name)) for parent, name in links)
        self._parents = tuple(parent._modules for parent, _, _ in self._links)
        self._names = tuple(name for _, name, _ in self._links)
        self._children = tuple(child for _, _, child in self._links)
        self._kinds = list(map(type, self._children))
        self._containers = tuple({id(parent): parent for parent in self._parents}.values())
        self._sizes = list(map(len, self._containers))
        self._moody = tuple(c for c in self._children if type(c) not in _SAME_IN_EVERY_MODE)
        self._hooks = tuple(hooks for child in self._children for hooks in forward_hooks(child))
        self._all_hooks = tuple(hooks for child in self._children for hooks in hooks_of(child))
        self._find_instances()
        self._forwards = tuple(map(_FORWARD, self._instances))
        self._convs = tuple(c for c in self._children if isinstance(c, nn.Conv2d))
        self._geometry = list(map(_GEOMETRY, self._convs))
        self._gelus = tuple(c for c in self._children if isinstance(c, nn.GELU))
        self._approximations = [gelu.approximate for gelu in self._gelus]
        norms = (c for c in self._children if isinstance(c, nn.BatchNorm2d))
        self._buffers = tuple(norm._buffers for norm in norms)

    def _find_instances(self) -> None:
        self._instances = tuple(map(vars, self._children))
        self._snapshot: Snapshot | None = None
        self._tries = _SNAPSHOTS

    def __getstate__(self) -> dict:
        found = ("_instances", "_snapshot", "_tries")
        return {name: value for name, value in vars(self).items() if name not in found}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._find_instances()  # a copied module gets a ``__dict__`` of its own, whoever copies

    def traced(self) -> bool:
        """What a graph has to be guarded by: written for Dynamo to trace, where ``unchanged`` is a
        constant of the trace."""
        for parent, name, child in self._links:
            if getattr(parent, name) is not child or child.training:
                return False
        return True

    def has_its_children(self) -> bool:
        """The same for training, whose mode each norm is asked for."""
        return all(getattr(parent, name) is child for parent, name, child in self._links)

    def unchanged(self) -> bool:
        snapshot = self._snapshot
        if snapshot is not None and snapshot.holds() and not any(GLOBAL_HOOKS):
            return True
        unchanged = self._is_unchanged()
        if unchanged and self._tries > 0 and _native.unchanged() is not None:
            self._tries -= 1
            taken = self._taken()
            # What another thread wrote in between must not pass for what is to be.
            self._snapshot = taken if self._is_unchanged() else None
        return unchanged

    def _taken(self) -> Snapshot | None:
        """Of what ``_is_unchanged`` looks at, while that is unchanged. None if some of it lies in
        no dictionary: a class may compute what is an attribute elsewhere."""
        attributes = [(vars(conv), name) for conv in self._convs for name in _SIDES]
        attributes += [(vars(gelu), "approximate") for gelu in self._gelus]
        if not all(name in instance for instance, name in attributes):
            return None
        children = zip(self._parents, self._names, self._children, strict=True)
        evaluating = ((vars(child), "training", False) for child in self._moody)
        forwards = (
            (instance, "forward", instance.get("forward", ...)) for instance in self._instances
        )
        values = ((instance, name, instance[name]) for instance, name in attributes)
        statistics = (
            (buffers, name, buffers.get(name, ...))
            for buffers in self._buffers
            for name in ("running_mean", "running_var")
        )
        return Snapshot(
            (*children, *evaluating, *forwards, *values, *statistics),
            (*zip(self._containers, self._sizes, strict=True), *((h, 0) for h in self._hooks)),
            zip(self._children, self._kinds, self._instances, strict=True),
        )

    def _is_unchanged(self) -> bool:
        return (
            not any(self._hooks)
            and True not in map(_TRAINING, self._moody)
            and self._has_its_structure()
            and all(_are_there(map(get, self._buffers)) for get in _STATISTICS)
            and not any(GLOBAL_HOOKS)
        )

    def unchanged_in_training(self) -> bool:
        """The same where autograd records: hooks of a backward count, the mode does not."""
        return (
            not any(self._all_hooks)
            and self._has_its_structure()
            and not any(GLOBAL_BACKWARD_HOOKS)
            and not any(GLOBAL_HOOKS)
        )

    def _has_its_structure(self) -> bool:
        return (
            all(map(is_, map(dict.get, self._parents, self._names), self._children))
            and list(map(type, self._children)) == self._kinds
            and list(map(len, self._containers)) == self._sizes
            and all(map(is_, map(_FORWARD, self._instances), self._forwards))
            and list(map(_GEOMETRY, self._convs)) == self._geometry
            and [gelu.approximate for gelu in self._gelus] == self._approximations
        )


class Tensors:
    """The parameters and buffers of a model, held, and where they lie: what a CUDA graph reads,
    whatever is written there (but not how often a norm was trained, which none does). The eps of
    norms, which it does not read again, are here too."""

    def __init__(self, model: nn.Module):
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        every = (d for m in model.modules() for d in (m._parameters, m._buffers))
        self._dictionaries: list[dict[str, Any]] = [d for d in every if d]
        self._tensors = self._found()
        # How often a norm was trained is read by no forward of an evaluation that is known.
        known = (m for m in norms if type(m).__module__.startswith(_KNOWN_LIBRARIES))
        counts = {id(norm._buffers.get("num_batches_tracked")) for norm in known}
        self._there = [t for t in self._tensors if t is not None and id(t) not in counts]
        self._addresses = list(map(_ADDRESS, self._there))
        self._norms = norms
        self._eps = list(map(_EPS, norms))
        # Memory that a parameter no longer has (``p.data = other``) must not become another's.
        self._held = [t.detach() for t in self._there]
        items = ((d, name, tensor) for d in self._dictionaries for name, tensor in d.items())
        eps = ((vars(norm), "eps", norm.eps) for norm in norms)
        self._snapshot = Snapshot(
            (*items, *eps),
            ((d, len(d)) for d in self._dictionaries),
            ((norm, type(norm), vars(norm)) for norm in norms),
        )

    def _found(self) -> list[Tensor | None]:
        return list(chain.from_iterable(map(dict.values, self._dictionaries)))

    def are_there(self) -> bool:
        """Whether they lie where they did, those too that the model no longer has. A storage that
        was resized (offloaded weights) does not."""
        return list(map(_ADDRESS, self._there)) == self._addresses

    def are_the_models(self) -> bool:
        """Whether the model has these, and no others."""
        if self._snapshot.holds():
            return True
        found = self._found()
        return (
            len(found) == len(self._tensors)
            and all(map(is_, found, self._tensors))
            and list(map(_EPS, self._norms)) == self._eps
        )


def _are_there(values: Iterable[Any]) -> bool:
    return all(map(is_not, values, _NOTHING))


def _child(parent: nn.Module, name: str) -> nn.Module:
    child = parent._modules[name]
    assert child is not None
    return child


def links_of(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(parent, name of the child) of every module below ``module``."""
    for parent in module.modules():
        for name, child in parent._modules.items():
            if child is not None:
                yield parent, name


def is_all_known(model: nn.Module, ours: tuple[type, ...]) -> bool:
    """Whether every forward is of a library, or one of ``ours``, and changes no other module's
    tensors: what a user wrote may write into the norms of blocks that run after it."""
    return all(
        type(m).__module__.startswith(_KNOWN_LIBRARIES)
        and isinstance(vars(m).get("forward"), (NoneType, *ours))
        for m in model.modules()
    )


def forward_hooks(module: nn.Module) -> tuple[dict, dict]:
    """The live dictionaries of the hooks that calling ``module`` would run where autograd does not
    record; where it does, our ops do not run."""
    return module._forward_hooks, module._forward_pre_hooks


def hooks_of(module: nn.Module) -> tuple[dict, ...]:
    """All hooks that calling ``module`` may run."""
    return (*forward_hooks(module), module._backward_hooks, module._backward_pre_hooks)
