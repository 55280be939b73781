"""Tuned launches: ``launch/tables/<gpu>.json``, one file a GPU name, an array with one entry a
line, written by ``python -m effv2_kernels tune``.

    {"kernel": "conv", "kind": "bfloat16", "shape": {...}, "choice": {...}, "microseconds": 12.5}

Files in the folder that the environment variable EFFV2_TABLES names go before the package's own.
A file is checked when it is read, whole: a wrong entry raises TableError with file and line.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .triton import dense
from .triton.families import FAMILIES

FOLDER = Path(__file__).with_name("tables")
# The sizes that an entry is carried over to others by; all else of a shape has to be the same.
_SCALING = ("rows", "images", "pixels")
_FARTHEST = 2.0  # in powers of two
_KEYS = ("kernel", "kind", "shape", "choice", "microseconds")


class TableError(Exception):
    """A table that cannot be used; the text names the file and the line."""


@dataclass(frozen=True)
class Entry:
    """The fastest launch of a kernel at a shape, and how long it took."""

    kernel: str
    kind: str
    shape: Any
    choice: Any
    microseconds: float

    @property
    def key(self) -> tuple:
        return self.kernel, self.kind, self.shape


def path_of(gpu: str, folder: Path = FOLDER) -> Path:
    """Where the table of a GPU of this name is."""
    return folder / (re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_") + ".json")


def nearest(gpu: str, kernel: str, shape: Any, kind: str) -> Any:
    """The choice for this shape, or for the nearest one that differs in the number of pixels only,
    and not by more than a factor of 4; None if there is none."""
    best, distance = None, _FARTHEST
    for entry in _of_gpu(gpu):
        if (entry.kernel, entry.kind) == (kernel, kind):
            away = _distance(entry.shape, shape)
            if away < distance or (best is None and away <= distance):
                best, distance = entry.choice, away
    return best


def read(path: Path) -> list[Entry]:
    """The entries of a file. Raises TableError."""
    text = path.read_text()
    return [_entry(found, f"{path}, line {line}") for line, found in elements(path, text)]


def write(path: Path, entries: Iterable[Entry]) -> None:
    """Put entries into a file, one a line: over those of the same shape, else at the end."""
    merged = {entry.key: entry for entry in (read(path) if path.exists() else [])}
    merged.update((entry.key, entry) for entry in entries)
    write_array(path, (json.dumps(_plain(entry)) for entry in merged.values()))
    _of_gpu.cache_clear()


def write_array(path: Path, values: Iterable[str]) -> None:
    """Make a file of the JSON array of ``values``, one a line. The old file is there until the new
    one is whole."""
    lines = ",\n".join(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    whole.write_text(f"[\n{lines}\n]\n" if lines else "[]\n")
    whole.replace(path)


@functools.cache
def _of_gpu(gpu: str) -> tuple[Entry, ...]:
    own = os.environ.get("EFFV2_TABLES")
    folders = [Path(own)] if own else []
    paths = (path_of(gpu, folder) for folder in (*folders, FOLDER))
    found: dict[tuple, Entry] = {}
    for path in paths:
        for entry in read(path) if path.exists() else []:
            found.setdefault(entry.key, entry)
    return tuple(found.values())


def _distance(known: Any, asked: Any) -> float:
    total = 0.0
    for field in fields(asked):
        have, want = getattr(known, field.name), getattr(asked, field.name)
        if field.name in _SCALING:
            total += abs(math.log2(max(have, 1) / max(want, 1)))
        elif have != want:
            return math.inf
    return total


def _plain(entry: Entry) -> dict[str, Any]:
    shape, choice = asdict(entry.shape), asdict(entry.choice)
    values = (entry.kernel, entry.kind, shape, choice, entry.microseconds)
    return dict(zip(_KEYS, values, strict=True))


def elements(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of each element of the array that ``text`` is. Raises TableError."""
    try:
        if not isinstance(json.loads(text), list):
            raise TableError(f"{path}, line 1: a table is an array of entries")
    except json.JSONDecodeError as error:
        raise TableError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    while True:
        position = _skip(text, position)
        if text[position] == "]":
            return
        value, end = decoder.raw_decode(text, position)
        yield text.count("\n", 0, position) + 1, value
        position = end


def _skip(text: str, position: int) -> int:
    while text[position] in ", \t\r\n":
        position += 1
    return position


def _entry(found: Any, where: str) -> Entry:
    if not isinstance(found, dict) or set(found) != set(_KEYS):
        raise TableError(f"{where}: an entry has exactly the keys {', '.join(_KEYS)}")
    if found["kernel"] not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise TableError(f"{where}: kernel must be one of {known}, got {found['kernel']!r}")
    if found["kind"] not in dense.KINDS:
        known = ", ".join(dense.KINDS)
        raise TableError(f"{where}: kind must be one of {known}, got {found['kind']!r}")
    family = FAMILIES[found["kernel"]]
    shape = _built(family.Shape, found["shape"], f"{where}: shape")
    choice = _built(family.Choice, found["choice"], f"{where}: choice")
    for name, value in found["choice"].items():
        if name.startswith(("block", "warps")) and value & (value - 1):
            raise TableError(f"{where}: {name} must be a power of two, got {value}")
    for name, (least, most) in _RANGES.items():
        if not least <= found["choice"].get(name, least) <= most:
            value = found["choice"][name]
            raise TableError(f"{where}: {name} must be {least} to {most}, got {value}")
    time = found["microseconds"]
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not time > 0:
        raise TableError(f"{where}: microseconds must be a positive number, got {time!r}")
    return Entry(found["kernel"], found["kind"], shape, choice, float(time))


_RANGES = {
    **{name: (16, 512) for name in ("block_m", "block_n", "block_k", "block_e")},
    **{name: (0, 256) for name in ("block_r", "block_f")},
    **{"block_p": (1, 512), "block_c": (8, 512), "warps": (1, 16), "stages": (1, 8)},
    **{"split_k": (1, 64), "parts": (1, 4096), "tiles": (1, 4096), "resident": (0, 16)},
}


def _built(kind: type, values: Any, where: str) -> Any:
    names = [field.name for field in fields(kind)]
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if not isinstance(values, dict) or not needed <= set(values) <= set(names):
        raise TableError(f"{where} has exactly the keys {', '.join(names)}")
    for name, value in values.items():
        wanted = bool if name == "gated" else int
        if type(value) is not wanted or value < 0:
            raise TableError(f"{where}: {name} must be {_WORDS[wanted]}, got {value!r}")
    return kind(**values)


_WORDS = {bool: "true or false", int: "a whole number"}
