"""What a model's forward found out, in one go, for all the blocks in it: between kernels every look
starts with cold caches, so that one by one they cost much more.

It stands only while that forward runs, in its thread, and only for models whose modules are all
known: a module of a user's own may write into the norms of blocks that run after it, and those then
look for themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .freshness import Stamp
    from .inference import BlockRunner
    from .sequences import Weights


@dataclass(frozen=True, eq=False)
class Look:
    """blocks: those that it stands for, which are as they were described. stamp: on a CPU, what
    matches the weights just now. live: on a GPU, the weights of each, for a computation in
    ``dtype``."""

    blocks: Set[BlockRunner]
    stamp: Stamp | None = None
    live: Mapping[BlockRunner, Weights] = field(default_factory=dict)
    dtype: torch.dtype | None = None


class _Current(threading.local):
    look: Look | None = None


_CURRENT = _Current()


def look_for(block: BlockRunner) -> Look | None:
    """The look that stands for the block in this thread, if there is one."""
    look = _CURRENT.look
    return look if look is not None and block in look.blocks else None


@contextmanager
def standing(look: Look) -> Iterator[None]:
    """Within it, in this thread, ``look`` stands."""
    before = _CURRENT.look
    _CURRENT.look = look
    try:
        yield
    finally:
        _CURRENT.look = before
