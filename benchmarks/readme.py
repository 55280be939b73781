"""``python -m benchmarks readme``: the tables of README.md and benchmarks/README.md, from the
committed CSV files. All else in these pages is written by hand."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from . import pages, results
from .recipe import pages as recipe
from .results import Row

HELP = "write the tables of the pages from the CSV files"

ROOT = Path(__file__).parent.parent
#: Page -> section -> what writes it from all committed rows.
PAGES: Mapping[Path, Mapping[str, Callable[[list[Row]], str]]] = {
    ROOT / "README.md": {"measured gains": pages.gains, "training": pages.training},
    ROOT / "benchmarks" / "README.md": {
        "placement": pages.placement,
        "headline": pages.headline,
        "roofline": pages.roofline,
        "training roofline": pages.training_roofline,
        "blocks": pages.blocks,
        "operators": pages.operators,
        "shapes": pages.shapes,
        "correctness": pages.correctness,
        "counters": pages.counters,
        "kernels": pages.kernels,
        "recipe sizes": recipe.sizes,
        "recipe schedules": recipe.schedules,
        "recipe networks": recipe.networks,
        "recipe adaptive": recipe.adaptive,
        "recipe stages": recipe.stages,
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")


def command(arguments: argparse.Namespace) -> int:
    """Exit status 1 if, with ``--check``, a page differs."""
    rows = results.read_all()
    stale = 0
    for path, sections in PAGES.items():
        old = path.read_text()
        new = updated(old, rows, sections)
        if old != new and not arguments.check:
            path.write_text(new)
        elif old != new:
            print(f"{path.relative_to(ROOT)} differs from the CSV files")
            stale = 1
    return stale


def updated(text: str, rows: list[Row], sections: Mapping[str, Callable[[list[Row]], str]]) -> str:
    """The text with each section's table between its two markers; ValueError without them."""
    for name, write in sections.items():
        begin = f"<!-- {name}: written by `python -m benchmarks readme`, do not edit -->"
        end = f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the page needs one {begin!r} and one {end!r}")
        between = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
        table = f"\n{write(rows)}\n"
        text = between.sub(lambda _, table=table: table, text)
    return text
