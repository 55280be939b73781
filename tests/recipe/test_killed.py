"""A training that is killed at any moment goes on where it was, and ends in the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipe import small

pytest.importorskip("timm", reason="timm is an extra")
KILLS = 20
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_kills_at_random_moments(tmp_path: Path, world: int) -> None:
    """Every checkpoint that is there can be read, and the resumed runs' weights, their average and
    the optimizer's state are the uninterrupted run's, bit for bit."""
    images = small.write_stripes(tmp_path / "images")
    done = subprocess.run(
        [sys.executable, "-m", "tests.recipe.killing", tmp_path, images, str(KILLS), str(world)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{KILLS} kills" in done.stdout
