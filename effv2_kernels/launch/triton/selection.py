"""Which launch a kernel gets: what was tuned for this GPU, else what the model likes best."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .. import tables
from ..targets import Target
from .families import FAMILIES


@dataclass(frozen=True)
class Task:
    """A launch that somebody has to choose. shape: the kernel's ``Shape``; kind: one of
    ``dense.KINDS``."""

    kernel: str
    shape: Any
    kind: str


class _Tuning(threading.local):
    """What tuning does to the choices that are made in its thread."""

    asked: dict[Task, None] | None = None
    forced: tuple[Task, Any] | None = None


_TUNING = _Tuning()


def choose(kernel: str, shape: Any, kind: str, target: Target) -> Any:
    """The launch of ``kernel`` for its ``Shape``; ``kind`` is one of ``dense.KINDS``. None where
    no launch of this kernel fits the target.

    Raises ``tables.TableError`` if the GPU's table of tuned launches is not valid.
    """
    if _TUNING.asked is not None:
        _TUNING.asked[Task(kernel, shape, kind)] = None
    if _TUNING.forced is not None and _TUNING.forced[0] == Task(kernel, shape, kind):
        return _TUNING.forced[1]
    return known(kernel, shape, kind, target)


@functools.lru_cache(maxsize=4096)
def known(kernel: str, shape: Any, kind: str, target: Target) -> Any:
    """``choose`` without a look at tuning."""
    tuned = tables.nearest(target.name, kernel, shape, kind)
    if tuned is not None and FAMILIES[kernel].fits(shape, tuned, kind, target):
        return tuned
    return FAMILIES[kernel].modelled(shape, kind, target)


@contextmanager
def asked() -> Iterator[dict[Task, None]]:
    """Within it, in this thread, what is asked for comes into the dictionary that is yielded."""
    before, _TUNING.asked = _TUNING.asked, {}
    try:
        yield _TUNING.asked
    finally:
        _TUNING.asked = before


@contextmanager
def forced(task: Task, choice: Any) -> Iterator[None]:
    """Within it, in this thread, this task gets this choice."""
    before, _TUNING.forced = _TUNING.forced, (task, choice)
    try:
        yield
    finally:
        _TUNING.forced = before
