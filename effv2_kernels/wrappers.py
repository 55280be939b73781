"""What a patch puts on a module: callables that survive ``deepcopy`` and pickle.

Each holds the module it serves, so that a copy of the model gets callables that serve the copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from .adapters.ends import Ends
from .blocks import gates_of
from .folding import Stamp, WeightCache
from .inference import BlockRunner, Watch, checked, pooled_head, transformed


class _Forward:
    """``enabled``: off once the patch was taken back, for whoever has kept or wrapped it."""

    enabled = True

    @property
    def __code__(self) -> CodeType:
        """``torch.export`` asks a module's forward for its source location."""
        return type(self).__call__.__code__


class BlockForward(_Forward):
    """The forward of a patched block: our ops where they give the same, else the original."""

    def __init__(self, module: nn.Module, runner: BlockRunner):
        self.module = module
        self.runner = runner

    def __call__(self, x: Tensor) -> Tensor:
        if self.enabled and not self.module.training and self.runner.usable(x):
            return self.runner.run(x)
        return type(self.module).forward(self.module, x)

    def caches(self) -> list[WeightCache]:
        return [self.runner.cache]

    def clear(self) -> None:
        self.runner.cache.clear()


class ModelRunner:
    """Runs the ends of a model around its (patched) body.

    It also looks, in one go, whether anything in the model changed since the last forward, so that
    its blocks need not look one by one: between kernels every look starts with cold caches.
    """

    def __init__(
        self, ends: Ends, watch: Watch, stem: BlockRunner | None, head: BlockRunner | None
    ):
        self.ends = ends
        self.watch = watch
        self.stem = stem
        self.head = head
        self.pools_plainly = ends.pools_plainly()
        # A token, not self: a block that is copied alone must not take the model with it.
        self.group = object()
        self.tree: Watch | None = None
        self.leaves: tuple[nn.Module, ...] = ()
        self.gates: tuple[nn.Module, ...] = ()
        self._stamp: Stamp | None = None

    def adopt(self, runners: Iterable[BlockRunner], tree: Watch) -> None:
        """Take over the looking for the blocks in the model; ``tree`` watches all of it."""
        runners = [*runners, *(end for end in (self.stem, self.head) if end is not None)]
        for runner in runners:
            runner.group = self.group
        self.tree = tree
        self.leaves = tuple(leaf for runner in runners for leaf in runner.leaves)
        self.gates = tuple(gate for runner in runners for gate in gates_of(runner.block))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_stamp": None}

    def clear(self) -> None:
        self._stamp = None

    def ready(self) -> bool:
        if self.ends.model.training or not self.ends.applies():
            return False
        if torch.is_grad_enabled() and not torch.compiler.is_exporting():
            return False
        if torch.compiler.is_compiling():
            return self._unchanged()
        return not transformed() and self._as_described()

    @torch.compiler.assume_constant_result
    def _unchanged(self) -> bool:
        return self._as_described()

    def _as_described(self) -> bool:
        methods = (*self.ends.methods, *self.ends.bypassed_methods)
        own = vars(self.ends.model)
        replaced = (own[name] for name in methods if name in own)
        return (
            self.watch.unchanged()
            and self.ends.pools_plainly() == self.pools_plainly
            and all(isinstance(m, ModelForward) for m in replaced)
        )

    def run(self, method: str, x: Tensor) -> Tensor:
        computed = self.forward if method == "forward" else self.forward_features
        if torch.compiler.is_compiling() or type(x) is not Tensor or not self._tree_unchanged():
            return computed(x)
        stamp = self._stamp
        known = stamp is not None and stamp.matches()
        if stamp is None or not known:
            # Taken before the blocks look, so that what they fold is no older than it.
            stamp = Stamp(self.leaves, self.gates, sample=x.device.type == "cpu")
            self._stamp = stamp
        with checked(self.group, stamp, known):
            return computed(x)

    def _tree_unchanged(self) -> bool:
        return self.tree is not None and self.tree.unchanged()

    def forward(self, x: Tensor) -> Tensor:
        y = self._before_head(x)
        head = self.head
        if head is None or not head.usable(y):
            return self.ends.after_head(self.ends.original_head(y))
        if self.pools_plainly:
            return self.ends.after_pool(head.run(y, pooled_head))
        return self.ends.after_head(head.run(y))

    def forward_features(self, x: Tensor) -> Tensor:
        y = self._before_head(x)
        if self.head is None or not self.head.usable(y):
            return self.ends.original_head(y)
        return self.head.run(y)

    def _before_head(self, x: Tensor) -> Tensor:
        if self.stem is not None and self.stem.usable(x):
            x = self.stem.run(x)
        else:
            x = self.ends.original_stem(x)
        return self.ends.body(x)


class ModelForward(_Forward):
    """A method of a patched model (``forward``, ``forward_features``)."""

    def __init__(self, runner: ModelRunner, method: str):
        self.runner = runner
        self.method = method

    def __call__(self, x: Tensor) -> Any:
        if self.enabled and self.runner.ready():
            return self.runner.run(self.method, x)
        model = self.runner.ends.model
        return getattr(type(model), self.method)(model, x)

    def caches(self) -> list[WeightCache]:
        ends = self.runner.stem, self.runner.head
        return [end.cache for end in ends if end is not None]

    def clear(self) -> None:
        self.runner.clear()
        for cache in self.caches():
            cache.clear()


class PatchedRepr:
    """The ``extra_repr`` of a patched module: its own, and the ops that it runs on. ``forwards``:
    what else the patch put on the module, which may be wrapped by now and not be found there."""

    def __init__(self, module: nn.Module, ops: str, forwards: Iterable[_Forward]):
        self.module = module
        self.ops = ops
        self.forwards = tuple(forwards)

    def disable(self) -> None:
        for forward in self.forwards:
            forward.enabled = False

    def __call__(self) -> str:
        own = type(self.module).extra_repr(self.module)
        return f"{own}, effv2: {self.ops}" if own else f"effv2: {self.ops}"


class ReplicateUnpatched:
    """The ``_replicate_for_data_parallel`` of a patched module: ``nn.DataParallel`` copies a
    module's attributes to other devices, and there a forward of ours would serve the original."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self) -> nn.Module:
        replica = type(self.module)._replicate_for_data_parallel(self.module)
        for name in [n for n, value in vars(replica).items() if isinstance(value, OURS)]:
            del replica.__dict__[name]
        return replica


# What a patch leaves in the ``__dict__`` of a module.
OURS = (BlockForward, ModelForward, PatchedRepr, ReplicateUnpatched)


def caches_of(model: nn.Module) -> list[WeightCache]:
    """The folded weights of everything in ``model`` that runs on our ops."""
    found = (module.__dict__.get("forward") for module in model.modules())
    forwards = [own for own in found if isinstance(own, (BlockForward, ModelForward))]
    return [cache for forward in forwards for cache in forward.caches()]
