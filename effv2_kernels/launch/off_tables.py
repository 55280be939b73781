"""Files that list what is switched off: ``tables/<gpu>.off.json``, beside the tuned launches of the
same GPU, an array of entries.

    {"op": "expand_depthwise", "engine": "cuda", "dtype": "bfloat16",
     "shape": {"channels": 24, "kernel": 3, "least_batch": 32},
     "reason": "slower: 0.80x", "commit": "4ae4ff3"}

engine and dtype may be "any"; without "shape", or with an empty one, the whole op is meant. A file
is checked when it is read, whole: a wrong entry raises TableError with file and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from . import tables
from .op_numbers import OPS
from .tables import TableError

VARIABLE = "EFFV2_DISABLE"
ENGINES = ("cuda", "triton")
DTYPES = ("float32", "float16", "bfloat16")
ANY = "any"
SUFFIX = ".off.json"
# Who asks for an engine by its name gets a slow kernel, but no wrong one.
_SLOWER = "slower"
_REASONS = ("wrong", _SLOWER)
_NOTHING = "none"
_KEYS = ("op", "engine", "dtype", "reason", "commit")
# Conditions on the batch, beside those on the numbers themselves.
_BATCHES = ("least_batch", "most_batch")


@dataclass(frozen=True)
class Entry:
    """An engine that declines an op. engine: of ENGINES or "any"; dtype: of DTYPES or "any"; shape:
    what the op's numbers have to be, as (name, value), empty for the whole op; commit: at which it
    was measured, empty for what the environment switches off."""

    op: str
    engine: str
    dtype: str
    shape: tuple[tuple[str, int], ...]
    reason: str
    commit: str

    @property
    def key(self) -> tuple:
        return self.op, self.engine, self.dtype, self.shape

    @property
    def why(self) -> str:
        return f"{self.reason}, measured at {self.commit}" if self.commit else self.reason

    def names(self, engine: str, by_name: bool = False) -> bool:
        """Whether ``engine`` is meant. by_name: by who asked for it by its name."""
        meant = self.engine in (ANY, engine)
        return meant and not (by_name and self.reason.startswith(_SLOWER))

    def covers(self, numbers: Mapping[str, int]) -> bool:
        """Whether an op of these numbers is meant; an entry with a shape means none without."""
        return all(_holds(name, value, numbers) for name, value in self.shape)

    def text(self, gpu: str) -> str:
        """What is switched off, where and why, as a report says it behind the op's name."""
        shape = f" at {', '.join(f'{n} {v}' for n, v in self.shape)}" if self.shape else ""
        return f"{self.subject(gpu)}{shape} ({self.why})"

    def subject(self, gpu: str) -> str:
        verb = f"{' and '.join(ENGINES)} are" if self.engine == ANY else f"{self.engine} is"
        dtype = "" if self.dtype == ANY else f" in {self.dtype}"
        return f"{verb} switched off{dtype}" + (f" on {gpu}" if self.commit else "")


def _holds(name: str, value: int, numbers: Mapping[str, int]) -> bool:
    if name in _BATCHES:
        batch = numbers.get("batch")
        return batch is not None and (batch >= value if name == "least_batch" else batch <= value)
    return numbers.get(name) == value


def path_of(gpu: str, folder: Path = tables.FOLDER) -> Path:
    """Where it is listed what is switched off on a GPU of this name."""
    return tables.path_of(gpu, folder).with_suffix(SUFFIX)


def read(path: Path) -> list[Entry]:
    """The entries of a file. Raises TableError."""
    found = tables.elements(path, path.read_text())
    return [_entry(value, f"{path}, line {line}") for line, value in found]


def write(path: Path, entries: Iterable[Entry]) -> None:
    """Put entries into a file, one a line: over those of the same op, engine, dtype and shape, else
    at the end. Nothing is switched on again: that is for a person to decide, who edits the file.
    Raises TableError, and writes nothing, for an entry that could not be read."""
    merged = {entry.key: entry for entry in (read(path) if path.exists() else [])}
    merged.update((entry.key, entry) for entry in entries)
    values = [_plain(entry) for entry in merged.values()]
    for value in values:
        _entry(value, str(path))
    tables.write_array(path, map(json.dumps, values))


def parse(text: str) -> tuple[Entry, ...] | None:
    """What ``EFFV2_DISABLE=text`` switches off: ``op`` or ``op:engine``, separated by commas. None
    for "none". Raises ValueError for a name that is not known."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if parts == [_NOTHING]:
        return None
    return tuple(_of_words(*part.partition(":")) for part in parts)


def _of_words(op: str, colon: str, engine: str) -> Entry:
    for word, known in ((op, tuple(OPS)), (engine, ENGINES if colon else ("",))):
        if word not in known:
            listed = ", ".join(known)
            raise ValueError(f"{VARIABLE}: {word!r} is not one of {listed} (or {_NOTHING!r} alone)")
    return Entry(op, engine or ANY, ANY, (), VARIABLE, "")


def _plain(entry: Entry) -> dict[str, Any]:
    what = {"op": entry.op, "engine": entry.engine, "dtype": entry.dtype}
    shape = {"shape": dict(entry.shape)} if entry.shape else {}
    return {**what, **shape, "reason": entry.reason, "commit": entry.commit}


def _entry(found: Any, where: str) -> Entry:
    if not isinstance(found, dict) or set(found) - {"shape"} != set(_KEYS):
        raise TableError(f"{where}: an entry has the keys {', '.join(_KEYS)}, and may have shape")
    known = {"op": tuple(OPS), "engine": (*ENGINES, ANY), "dtype": (*DTYPES, ANY)}
    for name, values in known.items():
        if found[name] not in values:
            _fail(where, name, f"one of {', '.join(values)}", found[name])
    reason, commit = found["reason"], found["commit"]
    if not isinstance(reason, str) or not reason.startswith(_REASONS):
        _fail(where, "reason", f"a text that begins with {' or '.join(_REASONS)}", reason)
    if not isinstance(commit, str) or not commit:
        _fail(where, "commit", "that of the measurement", commit)
    shape = tuple(_conditions(found["op"], found.get("shape", {}), where))
    return Entry(found["op"], found["engine"], found["dtype"], shape, reason, commit)


def _conditions(op: str, shape: Any, where: str) -> Iterator[tuple[str, int]]:
    known = (*(name for name in OPS[op][0] if name != "batch"), *_BATCHES)
    if not isinstance(shape, dict) or not set(shape) <= set(known):
        _fail(where, f"the shape of {op}", f"an object with some of {', '.join(known)}", shape)
    for name, value in shape.items():
        if type(value) is not int or value < 0:
            _fail(where, name, "a whole number", value)
        yield name, value


def _fail(where: str, name: str, wanted: str, found: Any) -> NoReturn:
    raise TableError(f"{where}: {name} must be {wanted}, got {found!r}")
