"""From what a user names to the images of training and of validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import RecipeError
from .folders import class_folders, open_class_folders
from .named import PREFIX, open_named
from .shards import Shards, find_shards
from .source import Part, Source
from .tables import find_table, open_table

HOLDOUT = 0.1
_VALIDATION = ("val", "validation", "valid", "test")


def open_splits(
    where: str, *, validation: str | None = None, holdout: float | None = None
) -> tuple[Source, Source]:
    """The images of training and of validation.

    where: a folder of class folders; a folder with a table (``metadata.csv``, ``.jsonl`` or
        ``.parquet``); a folder, or a pattern like ``shards-{000..146}.tar``, of WebDataset's tar
        shards; a folder with such folders named ``train`` and ``val``; ``torchvision:NAME``, see
        ``open_named``; or ``digits``, scikit-learn's handwritten digits.
    validation: another such place, in place of the validation part of ``where``; it must have the
        classes of training.
    holdout: the share of the training images, of every class alike, that is held out of training
        for validation; 0.1 where there are no other images for it. Always the same ones.
    Raises RecipeError.
    """
    if validation is not None and holdout is not None:
        raise RecipeError("--validation and --holdout exclude each other: give one of them")
    training, own = _open_both(where, other=validation is not None or holdout is not None)
    _check(training)
    if validation is not None:
        return training, open_one(validation, training.classes)
    if own is not None:
        return training, own
    return hold_out(training, HOLDOUT if holdout is None else holdout)


def open_one(where: str | Path, classes: Sequence[str] | None = None) -> Source:
    """The images of one place; ``classes`` are those of training. Raises RecipeError."""
    text, path = str(where), Path(where).expanduser()
    if path.suffix == ".tar" and not path.is_dir():
        return Shards(text, find_shards(str(path)), classes)
    if not path.exists():
        raise RecipeError(f"{where}: there is no such folder")
    if not path.is_dir():
        raise RecipeError(f"{where} is a file; images come from a folder or from .tar shards")
    if not any(path.iterdir()):
        raise RecipeError(f"the folder {where} is empty")
    table = find_table(path)
    if table is not None:
        return open_table(table, classes)
    if any(path.glob("*.tar")):
        return Shards(text, _all_shards(path), classes)
    return open_class_folders(path, classes)


def hold_out(source: Source, share: float, seed: int = 0) -> tuple[Part, Part]:
    """All but ``share`` of the images of every class (by the first label), and these; at least one
    image of a class that has two. Raises RecipeError."""
    if not 0 < share < 1:
        raise RecipeError(f"--holdout must be between 0 and 1, got {share}")
    first = np.array([source.labels(index)[0] for index in range(len(source))])
    shuffled = np.lexsort((np.random.default_rng(seed).random(len(first)), first))
    starts = np.flatnonzero(np.diff(first[shuffled])) + 1
    kept, held = [], []
    for of_class in np.split(shuffled, starts):
        count = min(max(1, round(share * len(of_class))), len(of_class) - 1)
        held.append(of_class[:count])
        kept.append(of_class[count:])
    training, validation = (Part(source, np.sort(np.concatenate(p))) for p in (kept, held))
    if not len(validation):
        raise RecipeError(f"{source.name} has one image a class: none can be held out")
    return training, validation


def _open_both(where: str, other: bool) -> tuple[Source, Source | None]:
    """``other``: the validation part is not wanted, whether there is one or not."""
    if where == "digits":
        from ..digits import write_folder

        where = str(write_folder())
    if where.startswith(PREFIX):
        return open_named(where)
    folder = Path(where).expanduser()
    if not _is_split(folder / "train"):
        return open_one(where), None
    training = open_one(folder / "train")
    part = next((folder / name for name in _VALIDATION if _is_split(folder / name)), None)
    if other or part is None:
        return training, None
    return training, open_one(part, training.classes)


def _is_split(folder: Path) -> bool:
    """Whether a folder is a part of a data set and not a class, which could be called train."""
    if not folder.is_dir():
        return False
    return bool(class_folders(folder) or find_table(folder) or any(folder.glob("*.tar")))


def _all_shards(folder: Path) -> list[Path]:
    shards = sorted(folder.glob("*.tar"))
    held = [shard for shard in shards if any(part in shard.name for part in _VALIDATION)]
    if held and len(held) < len(shards):
        raise RecipeError(
            f"{folder} has shards of training and of validation ({held[0].name}): give a pattern "
            "for each, one of them as --validation"
        )
    return shards


def _check(training: Source) -> None:
    present = {label for index in range(len(training)) for label in training.labels(index)}
    if len(present) < 2:
        only = training.classes[present.pop()]
        raise RecipeError(
            f"{training.name} has images of a single class, {only}: training needs two at least"
        )
