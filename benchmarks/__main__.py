"""``python -m benchmarks SUITE ...`` measures; ``plots``, ``readme``, ``compare``, ``correctness``,
``tuned`` and ``verdict`` read what was measured; ``gpu`` is what ``make gpu`` runs."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from effv2_kernels.measuring.networks import NetworkError

from . import compare, correctness, counters, gpu, options, plots, readme, results, tuned, verdict
from .measure import LOST, ContextLost
from .options import Options
from .quiet import MachineBusy
from .suites import SUITES
from .tables import text

_ERRORS = (NetworkError, MachineBusy, ValueError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run suites, or another command; returns the exit status: 1 if anything was wrong, though the
    rest was done, 2 for arguments that make no sense."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        module = COMMANDS[argv[0]]
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks {argv[0]}")
        module.add_arguments(parser)
        return module.command(parser.parse_args(argv[1:]))
    arguments = _parser().parse_args(argv)
    try:
        chosen = options.parse(arguments)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    everything = "all" in arguments.suites
    names = tuple(SUITES) if everything else tuple(dict.fromkeys(arguments.suites))
    for done, name in enumerate(names):
        if len(names) > 1:
            print(f"== {name} ({done + 1} of {len(names)})", file=sys.stderr, flush=True)
        try:
            measure(name, chosen.under(chosen.budget.share(len(names) - done)))
        except ContextLost as lost:
            print(f"benchmarks {name}: the GPU's context is lost {lost}", file=sys.stderr)
            return LOST
    if everything:
        plots.draw(chosen.folder)
        plots.draw((chosen.out or results.FOLDER) / "static")
    if chosen.failures:
        print("\nfailed:", *chosen.failures, sep="\n  ", file=sys.stderr)
    return int(bool(chosen.failures))


def measure(name: str, chosen: Options) -> None:
    """Run one suite; write its rows case by case, and print them."""
    rows = []
    try:
        for found in SUITES[name].run(chosen):
            for path, part in _by_file(name, chosen, found).items():
                results.upsert(path, part)
            rows += found
    except _ERRORS as error:
        print(f"benchmarks {name}: {error}", file=sys.stderr)
        chosen.failures.append(f"{name}: {error}")
    except ContextLost:
        raise
    except Exception as error:  # a bug: shown whole, but the other suites are run all the same
        traceback.print_exc()
        chosen.failures.append(f"{name}: {type(error).__name__}: {error}")
    print(text(rows), flush=True)


def _by_file(name: str, chosen: Options, rows: list[results.Row]) -> dict[Path, list[results.Row]]:
    """What a device measured goes into the device's folder; what was counted, quoted or compiled
    into ``static``, beside it."""
    static = (chosen.out or results.FOLDER) / "static"
    found: dict[Path, list[results.Row]] = {}
    for row in rows:
        if name == "static":
            path = static / f"{row.suite}.csv"
        elif row.gpu == results.NO_DEVICE:
            path = static / "counts.csv"
        else:
            path = chosen.folder / "results.csv"
        found.setdefault(path, []).append(row)
    return found


COMMANDS = {
    "readme": readme,
    "plots": plots,
    "compare": compare,
    "correctness": correctness,
    "tuned": tuned,
    "verdict": verdict,
    "counters": counters,
    "gpu": gpu,
}


def _parser() -> argparse.ArgumentParser:
    listed = [f"  {suite.name:<18}{suite.help}" for suite in SUITES.values()]
    others = [f"  {name:<18}{module.HELP}" for name, module in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="\n".join(["suites:", *listed, "", "other commands:", *others]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suites", nargs="+", metavar="SUITE", choices=("all", *SUITES),
                        help="one or more of those below, or all")  # fmt: skip
    options.add_arguments(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
