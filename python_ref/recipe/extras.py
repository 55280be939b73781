"""Packages that the recipe builds on and that ``import python_ref`` does without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import RecipeError

TRAIN = "effv2_kernels[train]"


@contextmanager
def extra(install: str = TRAIN) -> Iterator[None]:
    """Around the imports of packages that ``pip install`` of ``install`` brings: one that is
    missing is a RecipeError that says so."""
    try:
        yield
    except ImportError as error:
        raise RecipeError(
            f"{error.name or error} is not installed: pip install '{install}' brings it"
        ) from error
