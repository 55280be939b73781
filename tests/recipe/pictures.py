"""Small pictures and the places in which training finds them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Smooth colours, as of a photograph."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_classes(folder: Path, images: Mapping[str, int]) -> Path:
    """A folder of class folders, with so many images each."""
    for name, count in images.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            data = encoded(picture(seed=number))
            (folder / name / f"{name}{number:02}.jpg").write_bytes(data)
    return folder


def write_images(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(encoded(picture(seed=number)))
    return folder


def write_shard(path: Path, members: Mapping[str, bytes | str | dict[str, Any]]) -> Path:
    """A tar file; a dict is written as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            text = json.dumps(content) if isinstance(content, dict) else content
            data = text.encode() if isinstance(text, str) else text
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


@dataclass
class InMemory:
    """A source of encoded images with one or several labels each. Of classes ``"0"`` and on."""

    files: list[bytes]
    of: list[tuple[int, ...]]
    count: int = 3
    name: str = "memory"

    @property
    def classes(self) -> list[str]:
        return [str(number) for number in range(self.count)]

    @property
    def several(self) -> bool:
        return any(len(labels) > 1 for labels in self.of)

    def __len__(self) -> int:
        return len(self.files)

    def labels(self, index: int) -> tuple[int, ...]:
        return self.of[index]

    def where(self, index: int) -> str:
        return f"{self.name}/{index}.jpg"

    def read(self, index: int) -> bytes:
        return self.files[index]


def in_memory(images: int = 12, width: int = 80, height: int = 60) -> InMemory:
    files = [encoded(picture(width, height, seed)) for seed in range(images)]
    return InMemory(files, [(seed % 3,) for seed in range(images)])
