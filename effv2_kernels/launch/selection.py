"""Which launch a kernel gets: what was tuned for this GPU, else what the closed form says."""

from __future__ import annotations

import functools
from typing import Any

from . import tables
from .families import FAMILIES
from .targets import Target


@functools.lru_cache(maxsize=4096)
def choose(kernel: str, shape: Any, kind: str, target: Target) -> Any:
    """The launch of ``kernel`` for its ``Shape``; ``kind`` is one of ``dense.KINDS``. None where
    no launch of this kernel fits the target.

    Raises ``tables.TableError`` if the GPU's table of tuned launches is not valid.
    """
    tuned = tables.nearest(target.name, kernel, shape, kind)
    if tuned is not None and FAMILIES[kernel].fits(shape, tuned, kind, target):
        return tuned
    return FAMILIES[kernel].closed_form(shape, kind, target)
