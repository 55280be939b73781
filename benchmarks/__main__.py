"""``python -m benchmarks SUITE ...`` measures; ``python -m benchmarks readme`` publishes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from effv2_kernels.cli.networks import NetworkError

from . import readme, results
from .quiet import MachineBusy
from .suites import SUITES
from .tables import text
from .timing import WrongOutput


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.command == "readme":
        return readme.run(check=arguments.check)
    try:
        rows = SUITES[arguments.command].run(arguments)
    except (NetworkError, WrongOutput, MachineBusy) as error:
        print(f"benchmarks {arguments.command}: {error}", file=sys.stderr)
        return 1
    print(text(rows))
    path = Path(arguments.out) if arguments.out else _default_path(arguments.command)
    results.upsert(path, rows)
    print(f"\nwritten: {path}")
    return 0


def _default_path(suite: str) -> Path:
    return results.FOLDER / "cpu" / f"{suite}.csv"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, suite in SUITES.items():
        command = commands.add_parser(name, help=suite.HELP)
        suite.add_arguments(command)
        command.add_argument("--out", metavar="FILE", help="CSV to update (default: the committed)")
    table = commands.add_parser("readme", help="write the README's table from the CSV files")
    table.add_argument("--check", action="store_true", help="only say whether it is up to date")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
