"""Tar files of images, as WebDataset writes them, read in any order."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ..errors import RecipeError
from .source import number

_IMAGES = ("jpg", "jpeg", "png", "webp")
_BRACES = re.compile(r"\{([^{}]+)\}")


class _Member(NamedTuple):
    """A file in a tar: which bytes of the tar it is."""

    name: str
    offset: int
    size: int


class Shards:
    """Images in tar shards, each a member ``key.jpg`` (png, webp) beside ``key.cls``, a class, or
    ``key.json``, whose ``label`` is a class or a list of them."""

    def __init__(
        self, name: str, shards: Sequence[Path], classes: Sequence[str] | None = None
    ) -> None:
        """Reads the header of every member, once. classes: those of training.
        Raises RecipeError."""
        self.name = name
        self._shards = list(shards)
        members, labels, numbers = [], [], []
        for position, shard in enumerate(shards):
            for image, label in _images(shard):
                members.append(image)
                labels.append(label)
                numbers.append(position)
        if not members:
            raise RecipeError(f"{name} has no images: no member is one of {', '.join(_IMAGES)}")
        # Arrays, for the reason that Labels gives.
        self._names = np.array([member.name.encode() for member in members], dtype=np.bytes_)
        self._places = np.array(
            [(shard, m.offset, m.size) for shard, m in zip(numbers, members, strict=True)],
            dtype=np.int64,
        )
        self.classes, self._labels = number(labels, classes, name)

    @property
    def several(self) -> bool:
        return self._labels.several

    def __len__(self) -> int:
        return len(self._places)

    def labels(self, index: int) -> tuple[int, ...]:
        return self._labels[index]

    def where(self, index: int) -> str:
        return f"{self._shards[self._places[index, 0]]}:{self._names[index].item().decode()}"

    def read(self, index: int) -> bytes:
        shard, offset, size = self._places[index].tolist()
        return _read(self._shards[shard], _Member("", offset, size))


def find_shards(pattern: str) -> list[Path]:
    """The tar files that a pattern names: ``*`` and ``?`` as in a shell, ``{a,b}``, ``{000..146}``.
    Raises RecipeError where a part of it names none."""
    found = []
    for name in _without_braces(pattern):
        paths = sorted(map(Path, glob(name)))
        if not paths:
            raise RecipeError(f"{name}: there is no such file")
        found.extend(paths)
    return found


def _without_braces(pattern: str) -> Iterator[str]:
    braces = _BRACES.search(pattern)
    if not braces:
        yield pattern
        return
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    first, dots, last = braces[1].partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        choices = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    else:
        choices = braces[1].split(",")
    for choice in choices:
        yield from _without_braces(before + choice + after)


def _images(shard: Path) -> Iterator[tuple[_Member, list[str]]]:
    """Every image of a shard and its labels, as they are written."""
    images, labels = {}, {}
    for member in _members(shard):
        path = PurePosixPath(member.name)
        stem, _, kind = path.name.partition(".")
        key = str(path.with_name(stem))
        if kind.lower() in _IMAGES:
            images[key] = member
        elif kind == "cls" or (kind == "json" and key not in labels):
            labels[key] = member
    for key, image in images.items():
        if key not in labels:
            raise RecipeError(f"{shard}:{image.name} has neither a {key}.cls nor a {key}.json")
        yield image, _label(shard, labels[key])


def _members(shard: Path) -> Iterator[_Member]:
    try:
        size = shard.stat().st_size
        with tarfile.open(shard, "r:") as file:
            for info in file:
                if info.offset_data + info.size > size:
                    raise tarfile.ReadError(f"it ends within {info.name}")
                if info.isfile():
                    yield _Member(info.name, info.offset_data, info.size)
    except (OSError, tarfile.TarError) as error:
        raise RecipeError(f"the shard {shard} cannot be read: {error}") from error


def _label(shard: Path, member: _Member) -> list[str]:
    text = _read(shard, member).decode(errors="replace").strip()
    if not member.name.endswith(".json"):
        return [text]
    try:
        label = json.loads(text)["label"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{shard}:{member.name} has no label") from error
    labels = [str(one) for one in (label if isinstance(label, list) else [label])]
    if not labels:
        raise RecipeError(f"{shard}:{member.name} has an empty list of labels")
    return labels


def _read(shard: Path, member: _Member) -> bytes:
    with open(shard, "rb", buffering=0) as file:
        file.seek(member.offset)
        return file.read(member.size)
