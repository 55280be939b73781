"""Which engine declines which op, on which GPU: because its kernel was found wrong there, or slower
than what it replaces.

``off_tables`` has the files; those in the folder that EFFV2_TABLES names count too. EFFV2_DISABLE
switches off for one process, on whatever GPU: ``op`` or ``op:engine``, separated by commas; "none"
leaves everything on, whatever the files say (for measuring).

All is read once. Of an op that nothing names only that much is asked at each call.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import off_tables, tables, targets
from .off_tables import ANY, Entry
from .op_numbers import OPS


@functools.lru_cache(maxsize=4096)
def why_not(
    op: str,
    engine: str,
    dtype: torch.dtype,
    gpu: str,
    numbers: tuple[int, ...] | None = None,
    *,
    by_name: bool = False,
) -> str:
    """Why ``engine`` declines the op in ``dtype`` on the GPU of that name ("" for a CPU, on which
    Triton interprets), or an empty string.

    numbers: what the op's function in OPS gives; without them only what is switched off whole
    counts. by_name: where the engine was asked for by its name.
    """
    values = {} if numbers is None else dict(zip(OPS[op][0], numbers, strict=True))
    kinds = (ANY, str(dtype).removeprefix("torch."))
    for entry in of_gpu(gpu):
        meant = entry.op == op and entry.dtype in kinds and entry.names(engine, by_name)
        if meant and entry.covers(values):
            return entry.why
    return ""


def numbers(op: str, arguments: Sequence[Any]) -> tuple[int, ...]:
    """Of the op's arguments, for ``why_not``."""
    return OPS[op][1](*arguments)


@functools.lru_cache(maxsize=256)
def named(op: str, engine: str, by_name: bool = False) -> bool:
    """Whether the environment or a table of any GPU names this op and engine. Raises TableError or
    ValueError for what cannot be understood."""
    off = _environment()
    if off is None:
        return False
    entries = (entry for table in (off, *_tables().values()) for entry in table)
    return any(entry.op == op and entry.names(engine, by_name) for entry in entries)


def gpu_of(device: torch.device) -> str:
    """The name of the GPU, or nothing: a CPU, or a fake tensor's device where there is no GPU."""
    return targets.of_device(device).name if device.type == "cuda" and _has_gpu() else ""


@functools.cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()


@functools.cache
def of_gpu(gpu: str) -> tuple[Entry, ...]:
    """All that is switched off on a GPU of this name; the environment's entries come first."""
    off = _environment()
    if off is None:
        return ()
    return off + _tables().get(off_tables.path_of(gpu).name, ())


def everything_is_on() -> bool:
    """Whether the environment says not to look at the tables."""
    return _environment() is None


def sentences(ops: Mapping[str, Iterable[str]], gpu: str, *, by_name: bool = False) -> list[str]:
    """For a report: a line for each of ``ops``, and each engine of those that the mapping gives it,
    that is switched off whole or at some shapes."""
    lines = []
    for op, engines in ops.items():
        asked = tuple(engines)
        found: dict[str, list[Entry]] = {}
        for entry in of_gpu(gpu):
            if entry.op == op and any(entry.names(engine, by_name) for engine in asked):
                found.setdefault(entry.subject(gpu), []).append(entry)
        lines += [f"{op}: {_summed_up(entries, gpu)}" for entries in found.values()]
    return lines


def _summed_up(entries: list[Entry], gpu: str) -> str:
    """Entries that differ in their shapes only: the one that means all, or how many there are."""
    first = min(entries, key=lambda entry: len(entry.shape))
    if not first.shape or len(entries) == 1:
        return first.text(gpu)
    return f"{first.subject(gpu)} at {len(entries)} shapes ({first.why}, and others)"


def forget() -> None:
    """Read everything again when it is next asked for."""
    for cached in (why_not, named, of_gpu, _tables, _environment, _has_gpu):
        cached.cache_clear()


@functools.cache
def _tables() -> dict[str, tuple[Entry, ...]]:
    """By the file's name."""
    own = os.environ.get("EFFV2_TABLES")
    found: dict[str, dict[tuple, Entry]] = {}
    for folder in ([Path(own)] if own else []) + [tables.FOLDER]:
        for path in sorted(folder.glob(f"*{off_tables.SUFFIX}")):
            for entry in off_tables.read(path):
                found.setdefault(path.name, {}).setdefault(entry.key, entry)
    return {name: tuple(entries.values()) for name, entries in found.items()}


@functools.cache
def _environment() -> tuple[Entry, ...] | None:
    return off_tables.parse(os.environ.get(off_tables.VARIABLE, ""))
