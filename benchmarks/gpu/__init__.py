"""``make gpu``: all that needs an NVIDIA GPU, in parts that fit five minutes each. Each ends with a
verdict that says what to mend. ``parts`` says what is done, ``run`` does it."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import torch

from .. import STARTED, plots, results, verdict
from .parts import BUILD, PARTS
from .run import Run

HELP = "all that needs a GPU, as `make gpu` runs it"
HEADING = "== verdict"
#: Of one part.
MINUTES = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=PARTS, help="(default: all, in turn)")
    parser.add_argument(
        "--minutes", type=float, help=f"for all of it (default: {MINUTES:g} a part)"
    )
    parser.add_argument("--results", metavar="DIR", help="(default: the device's own)")
    parser.add_argument("--steps", default="", help="only these steps, by name (see gpu/parts.py)")
    parser.add_argument("--tests", default="", help="more arguments for pytest, such as '-k gate'")
    parser.add_argument(
        "--no-build", action="store_true", help="the native library came with the tree"
    )
    parser.add_argument(
        "--small", action="store_true", help="small sizes, as on a CPU: to see that it all runs"
    )


def command(arguments: argparse.Namespace) -> int:
    """Exit status 0 if all went well, 1 if anything failed, 2 if nothing could be run. Ended by
    SIGTERM it still prints the verdict."""
    parts = [arguments.part] if arguments.part else list(PARTS)
    only = arguments.steps.split()
    unknown = set(only) - {step.name for part in parts for step in PARTS[part]}
    if unknown:
        print(f"benchmarks gpu: no step {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("benchmarks gpu: PyTorch finds no CUDA GPU", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    # One for all: what is measured may be written into tracked files, and then the tree is dirty.
    commit = os.environ.setdefault("EFFV2_COMMIT", results.environment(device).commit)
    folder = Path(arguments.results or results.FOLDER / results.slug(device)).resolve()
    minutes = arguments.minutes or MINUTES * len(parts)
    run = Run(
        folder,
        lambda line: print(line, flush=True),
        commit=commit,
        small=arguments.small,
        tests=shlex.split(arguments.tests),
        only=only,
    )
    run.announce(f"{results.device_name(device)}: {minutes:g} minutes, into {folder}")
    end = STARTED + 60 * minutes
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, run.stop)
    if "check" in parts:
        run.forget()
    build = BUILD[1:] if arguments.no_build else BUILD
    run.part("build", build, end - time.monotonic())
    if not run.failed:
        for number, part in enumerate(parts):
            run.part(part, PARTS[part], (end - time.monotonic()) / (len(parts) - number))
    if run.stopped:
        run.failed.append("stopped")
    if not arguments.results:  # else they are drawn where the CSV files go
        _draw(run)
    run.announce(f"\n{HEADING}\n{verdict.text(folder, parts, run.failed, commit, verdict.LIMIT)}")
    return int(bool(run.failed))


def _draw(run: Run) -> None:
    """A picture that cannot be drawn must not end the run."""
    try:
        plots.draw(run.folder)
    except Exception as error:
        run.failed.append(f"plots: {type(error).__name__}: {error}")
