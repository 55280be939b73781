"""Pictures of what was measured, from the CSV files alone: ``python -m benchmarks plots``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import results
from ..results import Row
from . import accuracy, bars, blocks, floors, operators, recipe

HELP = "draw the CSV files of every device, and the static ones"

#: File name without ending -> what draws it: the folder's rows -> whether there was anything to
#: draw.
PLOTS: dict[str, Callable[[list[Row], Any], bool]] = {
    "accuracy": accuracy.draw,
    "speedup": bars.draw,
    "blocks": blocks.draw,
    "operators": operators.draw,
    "floors": floors.draw,
    "recipe_sizes": recipe.sizes,
    "recipe_course": recipe.course,
}


def draw(folder: Path) -> list[Path]:
    """Draw what the CSV files of ``folder`` allow into it; says what they do not. Returns the
    pictures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for path in sorted(folder.glob("*.csv")) for row in results.read(path)]
    written, missing = [], []
    for name, plot in PLOTS.items():
        figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
        if plot(rows, axes):
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=110)
            written.append(path)
        else:
            missing.append(name)
        plt.close(figure)
    if missing:
        print(f"{folder} has no numbers to draw {', '.join(missing)}", file=sys.stderr)
    return written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="*", help="(default: all of results/)")


def command(arguments: argparse.Namespace) -> int:
    folders = arguments.folder or [
        path for path in sorted(results.FOLDER.iterdir()) if path.is_dir()
    ]
    for folder in folders:
        for path in draw(folder):
            print(path)
    return 0
