"""The data sets of torchvision, by their names."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from ..extras import extra
from .source import Files, Labels, Source, number

if TYPE_CHECKING:
    from PIL import Image

PREFIX = "torchvision:"
_TRAINING = ("train", "trainval", "train-standard")
_VALIDATION = ("val", "valid", "test")
# Where data sets keep their labels, so that none has to be decoded for them.
_LABELS = ("targets", "labels", "_labels", "y")
_SAMPLES = ("samples", "_samples")  # pairs of a file and its label
_FILES = ("_image_files", "_images")


class Named:
    """A data set of torchvision that gives decoded images."""

    def __init__(self, name: str, dataset: Any, classes: Sequence[str], labels: Labels) -> None:
        self.name = name
        self.classes = classes
        self.several = False
        self._dataset, self._labels = dataset, labels

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self, index: int) -> tuple[int, ...]:
        return self._labels[index]

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def read(self, index: int) -> Image.Image:
        return self._dataset[index][0]


def open_named(where: str) -> tuple[Source, Source | None]:
    """The training and validation parts of ``torchvision:NAME``, ``torchvision:NAME:ROOT`` or
    ``torchvision:NAME:ROOT:download``; ROOT is ``./data`` otherwise. A data set that torchvision
    does not split has no validation part. Raises RecipeError."""
    name, *more = where.removeprefix(PREFIX).split(":")
    root, *flags = more or ["data"]
    if flags not in ([], ["download"]):
        raise RecipeError(f"{where}: after the root may only follow :download")
    make = _data_set(name)
    parameters = inspect.signature(make).parameters
    common: dict[str, Any] = {"download": True} if flags else {}
    if flags and "download" not in parameters:
        raise RecipeError(f"{where}: torchvision cannot download {name}")
    title = f"{PREFIX}{name}"
    if "split" in parameters:
        training = _open_split(make, title, root, _TRAINING, common)
        validation = _open_split(make, title, root, _VALIDATION, common)
    elif "train" in parameters:
        training = _open(make, title, root, {"train": True, **common})
        validation = _open(make, title, root, {"train": False, **common})
    else:
        return _source(title, _open(make, title, root, common)), None
    first = _source(title, training)
    return first, _source(title, validation, first.classes)


def _data_set(name: str) -> type:
    with extra():
        from torchvision import datasets

    found = getattr(datasets, name, None)
    if not (isinstance(found, type) and issubclass(found, datasets.VisionDataset)):
        close = get_close_matches(name, datasets.__all__, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise RecipeError(f"{PREFIX}{name}: torchvision has no data set of this name{hint}")
    return found


def _open_split(
    make: type, title: str, root: str, splits: Sequence[str], options: dict[str, Any]
) -> Any:
    """The first of several names of a split that the data set knows."""
    for split in splits:
        try:
            return _open(make, title, root, {"split": split, **options})
        except ValueError:  # is how torchvision refuses a name
            continue
    raise RecipeError(f"{title} has none of the splits {', '.join(splits)}")


def _open(make: type, title: str, root: str, options: dict[str, Any]) -> Any:
    try:
        return make(root, **options)
    except (RuntimeError, OSError, TypeError, ImportError) as error:
        hint = f"; {title}:{root}:download fetches it" if "download" not in options else ""
        reason = " ".join(str(error).split())
        raise RecipeError(f"{title} cannot be opened in {root}: {reason}{hint}") from error


def _source(title: str, dataset: Any, classes: Sequence[str] | None = None) -> Source:
    """classes: those of training."""
    numbers = _numbers(dataset, title)
    named = getattr(dataset, "classes", None)
    if classes is None and isinstance(named, (list, tuple)) and len(named) > max(numbers):
        classes = ["/".join(one) if isinstance(one, tuple) else str(one) for one in named]
    if classes is None:
        classes, labels = number([[str(one)] for one in numbers], None, title)
    else:
        labels = Labels([(one,) for one in numbers])
    paths = _paths(dataset)
    if paths is None:
        return Named(title, dataset, classes, labels)
    root = str(dataset.root)
    return Files(root, [os.path.relpath(path, root) for path in paths], labels, classes)


def _paths(dataset: Any) -> list[str | os.PathLike[str]] | None:
    """The files of a data set that has some: a file can be decoded at the size of the stage."""
    samples: Any = _first_of(dataset, _SAMPLES)
    paths = _first_of(dataset, _FILES) if samples is None else [sample[0] for sample in samples]
    return paths if paths and isinstance(paths[0], (str, os.PathLike)) else None


def _first_of(dataset: Any, names: Iterable[str]) -> Any:
    """The first of these attributes that it has, or None."""
    return next((getattr(dataset, name) for name in names if hasattr(dataset, name)), None)


def _numbers(dataset: Any, title: str) -> list[int]:
    kept = next((getattr(dataset, name) for name in _LABELS if hasattr(dataset, name)), None)
    samples = next((getattr(dataset, name) for name in _SAMPLES if hasattr(dataset, name)), None)
    if kept is None:
        each = samples if samples is not None else (dataset[i] for i in range(len(dataset)))
        kept = [one[1] for one in each]
    try:
        return [int(label) for label in kept]
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{title} is no data set of classes: a label is {kept[0]!r}") from error
