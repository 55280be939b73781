"""What every source of images offers, and what they share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import RecipeError

if TYPE_CHECKING:
    from PIL import Image

#: Of many names, how many a message lists.
_LISTED = 5


class Source(Protocol):
    """Labelled images. Picklable; files are opened by each ``read``, so that workers share none."""

    @property
    def name(self) -> str:
        """Of the folder or data set, for messages."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Their names; a label is a position in it."""
        ...

    @property
    def several(self) -> bool:
        """Whether any image has more than one label."""
        ...

    def __len__(self) -> int: ...

    def labels(self, index: int) -> tuple[int, ...]:
        """The classes of one image: one, or more where ``several``."""
        ...

    def where(self, index: int) -> str:
        """The file (of a shard: ``shard.tar:member``) of one image, for messages."""
        ...

    def read(self, index: int) -> bytes | Image.Image:
        """The encoded file of one image, or the image where the source has no encoded one. What
        cannot be read raises OSError."""
        ...


class Labels:
    """The labels of many images in two arrays: a list of as many tuples would be copied into every
    worker, since reading a Python object writes its reference count."""

    def __init__(self, each: Sequence[Sequence[int]]) -> None:
        self._ends = np.cumsum([0, *map(len, each)])
        self._numbers = np.fromiter(chain.from_iterable(each), np.int32, self._ends[-1])

    @property
    def several(self) -> bool:
        return len(self._numbers) > len(self)

    @property
    def present(self) -> set[int]:
        """The classes that any image has."""
        return set(np.unique(self._numbers).tolist())

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return tuple(self._numbers[self._ends[index] : self._ends[index + 1]].tolist())


class Files:
    """Images that are files below one folder."""

    def __init__(
        self, folder: str, paths: Sequence[str], labels: Labels, classes: Sequence[str]
    ) -> None:
        """paths: of every image, from ``folder``."""
        self.name = folder
        self.classes = classes
        # An array of bytes, for the reason that Labels gives.
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        self._labels = labels

    @property
    def several(self) -> bool:
        return self._labels.several

    def __len__(self) -> int:
        return len(self._paths)

    def labels(self, index: int) -> tuple[int, ...]:
        return self._labels[index]

    def where(self, index: int) -> str:
        return os.path.join(self.name, os.fsdecode(self._paths[index].item()))

    def read(self, index: int) -> bytes:
        with open(self.where(index), "rb", buffering=0) as file:
            return file.read()


@dataclass(frozen=True)
class Part:
    """Some images of a source, by their positions in it."""

    whole: Source
    indices: np.ndarray

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def classes(self) -> Sequence[str]:
        return self.whole.classes

    @property
    def several(self) -> bool:
        return self.whole.several

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self, index: int) -> tuple[int, ...]:
        return self.whole.labels(int(self.indices[index]))

    def where(self, index: int) -> str:
        return self.whole.where(int(self.indices[index]))

    def read(self, index: int) -> bytes | Image.Image:
        return self.whole.read(int(self.indices[index]))


def number(
    labels: Sequence[Sequence[str]], classes: Sequence[str] | None, name: str
) -> tuple[Sequence[str], Labels]:
    """Class names and labels from the labels as they are written.

    Labels that are all whole numbers are the numbers of the classes, 0 to the largest; others are
    names, sorted. ``classes`` are those of training, to which labels must then belong: a class
    without an image is no error here, where classes are only known by their images.
    Raises RecipeError.
    """
    found = set(chain.from_iterable(labels))
    plain = {label: str(int(label)) if label.isdecimal() else label for label in found}
    numeric = all(label.isdecimal() for label in found)
    written = plain if numeric else {label: label for label in found}
    if classes is None:
        largest = max(map(int, found)) if numeric else 0
        classes = list(map(str, range(largest + 1))) if numeric else sorted(found)
    check_known(written.values(), classes, name)
    position = {text: i for i, text in enumerate(classes)}
    numbers = {label: position[text] for label, text in written.items()}
    return classes, Labels([[numbers[label] for label in one] for one in labels])


def check_known(found: Iterable[str], classes: Sequence[str], name: str) -> None:
    """Raises RecipeError for classes that are not among those of training."""
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise RecipeError(f"{name} has classes that the training images do not: {listed(unknown)}")


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
