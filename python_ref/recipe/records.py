"""What a run writes down as it goes: records, and the CSV files that keep them."""

from __future__ import annotations

import csv
import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Generic, TypeVar

from . import checkpoints
from .errors import RecipeError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Point:
    """The training every few steps.

    step: how many are done. epoch: how many are done, with fractions. stage: of the schedule, from
    0. size: of the images, in pixels. rate: the learning rate. images_per_second: of the whole;
    loader: of the loader alone, could the network take them; step_only: of the training step
    alone, were they always there. magnitude, mixup, dropout: as in ``Regularisation``.
    """

    step: int
    epoch: float
    stage: int
    size: int
    loss: float
    rate: float
    images_per_second: float
    loader: float
    step_only: float
    magnitude: float
    mixup: float
    dropout: float


@dataclass(frozen=True)
class Evaluation:
    """Of the averaged (EMA) weights on ``images`` images of ``size`` pixels, after ``step`` steps.
    top1, top5: fractions of the images. seconds: how long it took."""

    step: int
    epoch: float
    size: int
    top1: float
    top5: float
    loss: float
    images: int
    seconds: float


Record = TypeVar("Record", Point, Evaluation)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes a RecipeError, which names ``path``, of what the system says against writing it."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise RecipeError(
                f"{path} cannot be written, no space left: free some, and resume"
            ) from error
        raise RecipeError(f"{path} cannot be written: {error.strerror or error}") from error


class Table(Generic[Record]):
    """A CSV file with a row a record, which is in the file when ``append`` returns.

    ``kept``: the records of an earlier process that the file begins with, those of the steps before
    ``first``. What that process wrote later is dropped, as this one does those steps again.
    """

    def __init__(self, path: Path, kind: type[Record], first: int) -> None:
        self.path = path
        self.kept: list[Record] = [record for record in read(path, kind) if record.step < first]
        names = [field.name for field in fields(kind)]
        text = _line(names) + "".join(_row(record) for record in self.kept)
        checkpoints.write(path, lambda file: file.write(text.encode()))

    def append(self, record: Record) -> None:
        # Opened anew each time: nothing is left to be written when the process is killed.
        with writing(self.path), self.path.open("a") as file:
            file.write(_row(record))


def read(path: Path, kind: type[Record]) -> list[Record]:
    """The records of a CSV file, by step; of several for one step the last. None where there is no
    file. Rows that are cut off, as the last one may be after a full disk, are left out.

    Raises RecipeError for a file of something else.
    """
    try:
        lines = path.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    rows = list(csv.reader(line for line in lines if line.endswith("\n")))
    if not rows:
        return []
    if rows[0] != [field.name for field in fields(kind)]:
        raise RecipeError(f"{path} is not a log of this version: move it away")
    whole = (_parsed(row, kind) for row in rows[1:])
    by_step = {record.step: record for record in whole if record is not None}
    return [by_step[step] for step in sorted(by_step)]


def _parsed(row: list[str], kind: type[Record]) -> Record | None:
    types = {"int": int, "float": float}
    try:
        return kind(
            *(types[str(field.type)](text) for field, text in zip(fields(kind), row, strict=True))
        )
    except ValueError:
        return None


def _row(record: Record) -> str:
    return _line([f"{v:.8g}" if isinstance(v, float) else str(v) for v in astuple(record)])


def _line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
