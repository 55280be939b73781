"""A folder with one folder of images for each class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import RecipeError
from ..extras import extra
from .source import Files, Labels, check_known, listed


def class_folders(folder: Path) -> list[str]:
    """The sorted names of the folders in a folder; hidden ones (``.ipynb_checkpoints``) are no
    classes."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    return [name for name in names if not name.startswith(".")]


def open_class_folders(folder: Path, classes: Sequence[str] | None = None) -> Files:
    """classes: those of training, which this folder must have too. Raises RecipeError."""
    with extra():
        from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    found = class_folders(folder)
    if not found:
        raise RecipeError(_no_images(folder, IMG_EXTENSIONS))
    if classes is not None:
        check_known(found, classes, str(folder))
        missing = sorted(set(classes) - set(found))
        if missing:
            raise RecipeError(f"{folder} lacks classes of the training images: {listed(missing)}")
    classes = classes or found
    numbers = {name: i for i, name in enumerate(classes)}
    images = make_dataset(folder, numbers, IMG_EXTENSIONS, allow_empty=True)
    if not images:
        raise RecipeError(_no_images(folder, IMG_EXTENSIONS))
    labels = Labels([(label,) for _, label in images])
    empty = [name for i, name in enumerate(classes) if i not in labels.present]
    if empty:
        raise RecipeError(f"{folder} has class folders without an image: {listed(empty)}")
    paths = [os.path.relpath(path, folder) for path, _ in images]
    return Files(str(folder), paths, labels, classes)


def _no_images(folder: Path, extensions: Sequence[str]) -> str:
    kinds = ", ".join(extensions)
    return f"{folder} has no images: it needs a folder for each class, with files of {kinds}"
