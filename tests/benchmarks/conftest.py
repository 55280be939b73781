"""The benchmarks with a network and sizes that take a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.__main__ import main
from benchmarks.results import Row

NETWORK = ("--library", "python_ref", "--models", "efficientnetv2_b0", "--device", "cpu")
Run = Callable[..., tuple[int, list[Row]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs ``python -m benchmarks ARGUMENTS``; returns the exit status and all rows written."""

    def call(*arguments: str) -> tuple[int, list[Row]]:
        status = main([*arguments, "--out", str(tmp_path)])
        return status, results.read_all(tmp_path)

    return call


@pytest.fixture
def small(run: Run) -> Run:
    """The same on a small network and image, in two rounds."""

    def call(*arguments: str) -> tuple[int, list[Row]]:
        return run(*arguments, *NETWORK, "--resolution", "33", "--rounds", "2")

    return call


def keys(rows: list[Row], impl: str | None = None) -> set[tuple[str, str]]:
    """(implementation, metric) of the rows."""
    return {(r.impl, r.metric) for r in rows if impl in (None, r.impl)}
