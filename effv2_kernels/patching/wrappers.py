"""What a patch puts on a module: callables that survive ``deepcopy`` and pickle.

Each holds the module it serves, so that a copy of the model gets callables that serve the copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import is_exporting, is_transformed
from ..adapters.ends import Ends
from ..blocks import gates_of
from ..running.freshness import Stamp
from ..running.inference import BlockRunner, autocasts, folds
from ..running.live import live
from ..running.look import Look, standing
from ..running.sequences import pooled_head
from ..running.structure import Watch, is_all_known
from ..running.training import BlockTrainer


class _Forward:
    """``enabled``: off once the patch was taken back, for whoever has kept or wrapped it."""

    enabled = True

    def clear(self) -> None:
        """Drop what was folded."""
        raise NotImplementedError

    @property
    def __code__(self) -> CodeType:
        """``torch.export`` asks a module's forward for its source location."""
        return type(self).__call__.__code__


class BlockForward(_Forward):
    """The forward of a patched block: our ops where they give the same, else the original.
    ``trainer``: None where only inference is patched."""

    def __init__(self, module: nn.Module, runner: BlockRunner, trainer: BlockTrainer | None):
        self.module = module
        self.runner = runner
        self.trainer = trainer

    def __call__(self, x: Tensor) -> Tensor:
        if self.enabled and not self.module.training and self.runner.usable(x):
            return self.runner.run(x)
        if not torch.compiler.is_compiling():
            self.clear()  # training, or whatever else goes on: weights will change
        if self.enabled and self.trainer is not None and self.trainer.usable(x):
            return self.trainer.run(x)
        return type(self.module).forward(self.module, x)

    def clear(self) -> None:
        self.runner.folded.clear()


class ModelRunner:
    """Runs the ends of a model around its (patched) body.

    It also looks, in one go, whether anything in the model changed since the last forward, so that
    its blocks need not look one by one: between kernels every look starts with cold caches.
    """

    def __init__(
        self,
        ends: Ends,
        watch: Watch,
        stem: BlockRunner | None,
        head: BlockRunner | None,
        trainers: Sequence[BlockTrainer | None],
    ):
        """trainers: of stem and head, where no module of their own computes them."""
        self.ends = ends
        self.watch = watch
        self.stem = stem
        self.head = head
        self.trainers = trainers
        self.pools_plainly = ends.pools_plainly()
        self.blocks: frozenset[BlockRunner] = frozenset()
        self.tree: Watch | None = None
        self._stamp: Stamp | None = None

    def adopt(self, runners: Iterable[BlockRunner], tree: Watch) -> None:
        """Take over the looking for the blocks in the model, where all of it is known; ``tree``
        watches it."""
        ends = (end for end in (self.stem, self.head) if end is not None)
        self.blocks = frozenset((*runners, *ends))
        if is_all_known(self.ends.model, (_Forward,)):
            self.tree = tree

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_stamp": None}

    def clear(self) -> None:
        """Of the ends; blocks look after themselves."""
        self._stamp = None
        for end in (self.stem, self.head):
            if end is not None:
                end.folded.clear()

    def ready(self) -> bool:
        if self.ends.model.training or not self.ends.applies():
            return False
        if torch.is_grad_enabled() and not is_exporting():
            return False
        if torch.compiler.is_compiling():
            return self._unchanged()
        return not is_transformed() and self._as_described()

    def trains(self) -> bool:
        """Whether an end is to be trained by our ops."""
        if not any(self.trainers) or is_exporting() or not self.ends.applies():
            return False
        if torch.compiler.is_compiling():
            return self._methods_unchanged_in_trace()
        return not is_transformed() and self._methods_unchanged()

    @torch.compiler.assume_constant_result
    def _unchanged(self) -> bool:
        return self._as_described()

    @torch.compiler.assume_constant_result
    def _methods_unchanged_in_trace(self) -> bool:
        return self._methods_unchanged()

    def _as_described(self) -> bool:
        return (
            self.watch.unchanged()
            and self.ends.pools_plainly() == self.pools_plainly
            and self._methods_unchanged()
        )

    def _methods_unchanged(self) -> bool:
        methods = (*self.ends.methods, *self.ends.bypassed_methods)
        own = vars(self.ends.model)
        return all(isinstance(own[name], ModelForward) for name in methods if name in own)

    def run(self, method: str, x: Tensor) -> Tensor:
        computed = self.forward if method == "forward" else self.forward_features
        if torch.compiler.is_compiling() or type(x) is not Tensor:
            return computed(x)
        folding = all(folds(x, runner.triton) for runner in self.blocks)
        # On another device nothing is left of the CPU that the model came from.
        stamp = self._stamp = self._fresh_stamp() if folding else None
        if self.tree is None or not self.tree.unchanged():
            return computed(x)  # and the blocks look for themselves, too
        with standing(self._live_look(x) if stamp is None else Look(self.blocks, stamp=stamp)):
            return computed(x)

    def _live_look(self, x: Tensor) -> Look:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if autocasts(device) else x.dtype
        runners = tuple(self.blocks)
        weights = live([runner.parts for runner in runners], dtype)
        return Look(self.blocks, live=dict(zip(runners, weights, strict=True)), dtype=dtype)

    def _fresh_stamp(self) -> Stamp:
        """Of all that is folded in the model, which is dropped if anything changed: a write that
        few samples show may have changed what they do not show."""
        stamp = self._stamp  # which another thread may drop
        if stamp is None or not stamp.matches():
            for runner in self.blocks:
                runner.folded.clear()
            # Taken before anything is folded, so that what is folded is no older than it.
            leaves = (leaf for runner in self.blocks for leaf in runner.leaves)
            gates = (gate for runner in self.blocks for gate in gates_of(runner.block))
            stamp = Stamp(leaves, gates)
        return stamp

    def train(self, method: str, x: Tensor) -> Tensor:
        """The model's own forward, its ends on our training ops."""
        stem, head = self.trainers
        x = stem.run(x) if stem is not None and stem.usable(x) else self.ends.original_stem(x)
        x = self.ends.body(x)
        x = head.run(x) if head is not None and head.usable(x) else self.ends.original_head(x)
        return x if method == "forward_features" else self.ends.after_head(x)

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
        if not torch.compiler.is_compiling():
            self.clear()
        if self.enabled and self.runner.trains():
            return self.runner.train(self.method, x)
        model = self.runner.ends.model
        return getattr(type(model), self.method)(model, x)

    def clear(self) -> None:
        self.runner.clear()


class PatchedTrain:
    """The ``train`` of a patched module: its own, which ``eval`` calls too. Who leaves evaluation
    will change weights, so that nothing folded is kept."""

    def __init__(self, module: nn.Module, forward: _Forward):
        self.module = module
        self.forward = forward

    def __call__(self, mode: bool = True) -> nn.Module:
        if mode and not torch.compiler.is_compiling():
            self.forward.clear()
        return type(self.module).train(self.module, mode)


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
OURS = (BlockForward, ModelForward, PatchedRepr, PatchedTrain, ReplicateUnpatched)
