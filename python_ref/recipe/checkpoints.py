"""Files of a training that a crash at any moment leaves whole."""

from __future__ import annotations

import errno
import os
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import RecipeError

_NAME = re.compile(r"checkpoint-(\d+)\.pt")
_KEPT = 2
FORMAT = 1  # of the dictionary that a checkpoint holds


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes ``checkpoint-STEP.pt`` and deletes all but the last two.

    The file has its name only when it is whole and on the disk, so that there never is one that
    cannot be read. Raises RecipeError where it cannot be written; the files before it stay.
    """
    path = folder / f"checkpoint-{step:09d}.pt"
    write(path, lambda file: torch.save({"format": FORMAT, **state}, file))
    for old in listed(folder)[:-_KEPT]:
        old.unlink(missing_ok=True)
    return path


def write(path: Path, content: Callable[[BinaryIO], object]) -> None:
    """Writes a file by another name, waits until it is on the disk, and renames it. Raises
    RecipeError."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:
            content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync(path.parent)
    # PyTorch's archive writer turns an error of the file into a RuntimeError of its own.
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise RecipeError(_why_not_written(path, error)) from error


def _why_not_written(path: Path, error: OSError | RuntimeError) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "no space" in str(error).lower() or "file write failed" in str(error).lower():
        return f"no space left for {path}: free some and start again; older checkpoints are whole"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return f"{path} cannot be written: {reason}"


def _sync(folder: Path) -> None:
    """The folder's own entry for a renamed file, too, has to reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_after(folder: Path, step: int) -> list[Path]:
    """Deletes the checkpoints of later steps, which a run that goes on from ``step`` abandons: they
    would be taken for its newest. Returns which."""
    found = [path for number, path in _numbered(folder) if number > step]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest first."""
    return [path for _, path in _numbered(folder)]


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    found = folder.glob("*.pt")
    return sorted((int(m[1]), path) for path in found if (m := _NAME.fullmatch(path.name)))


def newest(folder: Path) -> Path | None:
    return listed(folder)[-1] if folder.is_dir() and listed(folder) else None


def load(path: Path) -> dict[str, Any]:
    """What ``save`` was given, on the CPU. Raises RecipeError for a file that is missing, cut off
    or something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such checkpoint") from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise RecipeError(
            f"{path} cannot be read as a checkpoint (cut off, or of something else)"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RecipeError(f"{path} is no checkpoint of this command: weights go to --init")
    return state
