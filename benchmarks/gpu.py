"""All that needs an NVIDIA GPU, in one command and under a time limit: ``make gpu``.

The most important sections come first, a section that fails does not stop the next, and what a
section measured is on disk as soon as it is measured. ``--device cpu`` is the rehearsal: the same
commands at small sizes on a CPU, without the sanitizer around them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import plots, results, verdict

ROOT = Path(__file__).parent.parent
HELP = "all that needs a GPU, as `make gpu` runs it"
MINUTES = 9.0


def parallel() -> tuple[str, ...]:
    """pytest's options for all cores, of which compiling takes most; a worker that a test has
    killed is replaced."""
    if importlib.util.find_spec("xdist") is None:
        return ()
    return ("-n", "auto", "--maxprocesses", "14", "--max-worker-restart", "99")


def patient() -> tuple[str, ...]:
    """pytest's options for a test that takes many times as long as usual."""
    if importlib.util.find_spec("pytest_timeout") is None:
        return ()
    return ("--timeout", "600", "--timeout-method", "thread")


_TESTS = ("-m", "pytest", "tests/gpu", "-q", "--tb=short", "-p", "no:cacheprovider", *parallel())
#: Small enough for a tool that slows every access down.
_SMALL = ("-m", "pytest", "tests/gpu/test_small.py", "-q", "-p", "no:cacheprovider", *patient())
#: Implementations that compile nothing for minutes.
_QUICK = "--impl eager_nchw eager_nhwc effv2 effv2_graph"
_COMPILED = "--impl eager_nhwc compile_default compile_reduce_overhead effv2 effv2_graph"
_LARGE = "--models efficientnetv2_m efficientnetv2_l"
#: Seconds that a step gets at least, as long as the whole run has time.
_LEAST = 15.0
_GRACE = 20.0


@dataclass(frozen=True)
class Step:
    """A command of a section: arguments of this Python, those that only suit a GPU (a CPU takes the
    suites' small sizes), whether it takes a time budget, the sanitizer to run it under, whether a
    rehearsal runs it, and whether it is the command that tunes."""

    arguments: tuple[str, ...]
    sizes: tuple[str, ...] = ()
    budgeted: bool = True
    sanitizer: str = ""
    rehearsed: bool = True
    tunes: bool = False


@dataclass(frozen=True)
class Section:
    """share: of the time limit, relative to the others."""

    name: str
    share: float
    steps: tuple[Step, ...]


def _suites(names: str, sizes: str = "", rehearsed: bool = True) -> Step:
    arguments = ("-m", "benchmarks", *names.split())
    return Step(arguments, tuple(sizes.split()), rehearsed=rehearsed)


def _sanitized(tool: str, rehearsed: bool) -> Step:
    return Step(_SMALL, budgeted=False, sanitizer=tool, rehearsed=rehearsed)


SECTIONS = (
    Section(
        "correctness",
        4,
        (
            Step(("-m", "benchmarks.native"), budgeted=False, rehearsed=False),
            Step(_TESTS, budgeted=False),
            # What the tests left, into the CSV file.
            Step(("-m", "benchmarks", "correctness"), budgeted=False, rehearsed=False),
        ),
    ),
    # Before what can take any time: a batch of one is what people feel.
    Section("latency", 1, (_suites("latency", f"--models efficientnetv2_s {_QUICK}"),)),
    Section(
        "models",
        7,
        (
            _suites("models", f"--models efficientnetv2_s --batch 128 {_QUICK}"),
            _suites("latency", f"--models efficientnetv2_s {_COMPILED}", False),
            _suites("models", f"--models efficientnetv2_s --batch 128 {_COMPILED}", False),
            _suites("roofline", "--models efficientnetv2_s"),
            _suites("latency models", f"{_LARGE} {_QUICK}", False),
            _suites("latency models", f"{_LARGE} {_COMPILED}", False),
        ),
    ),
    Section(
        "microbenchmarks",
        5,
        # Apart, since a kernel that writes where it must not ends all that its process has left.
        (
            _suites("depthwise expand_depthwise stem gate"),
            _suites("fused_mbconv conv project head"),
        ),
    ),
    Section("train", 3, (_suites("train memory headline placement"),)),
    Section(
        "sanitizer",
        2,
        (
            _sanitized("memcheck", True),
            _sanitized("racecheck", False),
            _sanitized("initcheck", False),
        ),
    ),
    Section("tune", 2, (Step(("-m", "effv2_kernels", "tune"), tunes=True),)),
)
_TUNING = ("--sizes", "384", "--batch", "128", "1", "--candidates", "8")
_REHEARSED_TUNING = (
    *("--rehearse", "--model", "efficientnetv2_b0", "--sizes", "64"),
    *("--batch", "1", "--candidates", "3"),
)


class Run:
    """Runs sections in order; ``log`` gets all that they print."""

    def __init__(self, folder: Path, device: str, minutes: float, announce: Callable[[str], None]):
        self.folder, self.device, self.announce = folder, device, announce
        self.end = time.monotonic() + 60 * minutes
        self.log = folder / "log.txt"
        self.failed: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")

    def section(self, section: Section, ahead: float) -> None:
        """``ahead``: the shares of this section and those after it."""
        left = max(0.0, self.end - time.monotonic())
        end = time.monotonic() + left * section.share / ahead
        steps = [s for s in section.steps if s.rehearsed or self.device == "cuda"]
        for done, step in enumerate(steps):
            seconds = max(0.0, end - time.monotonic()) / (len(steps) - done)
            # What an earlier step took too much of is taken from later sections, not from this one.
            left = max(0.0, self.end - time.monotonic())
            self.step(section.name, step, max(seconds, min(_LEAST, left)))

    def step(self, section: str, step: Step, seconds: float) -> None:
        what = f"{section}: {' '.join([*step.arguments[1:], *step.sizes])}"
        if step.sanitizer:
            what += f" under {step.sanitizer}"
        if seconds <= 0:
            self._failure(f"{what}: not run, for the time is used up")
            return
        command = [sys.executable, *step.arguments, *(step.sizes if self.device == "cuda" else ())]
        if step.tunes:
            command += ["--output", str(self.folder), "--minutes", f"{seconds / 60:.2f}"]
            command += ["--log", str(self.folder / "tuning.jsonl")]
            command += _TUNING if self.device == "cuda" else _REHEARSED_TUNING
        elif step.budgeted:
            command += ["--device", self.device, "--out", str(self.folder)]
            command += ["--time-budget", f"{seconds:.0f}"]
        if step.sanitizer and self.device == "cuda":
            found = _sanitizer()
            if found is None:
                self._failure(f"{what}: not run, for there is no compute-sanitizer")
                return
            options = ["--tool", step.sanitizer, "--error-exitcode", "1"]
            command = [found, *options, "--target-processes", "all", *command]
        began = time.monotonic()
        # A suite ends by itself, one case after its budget. The limit is for what hangs; the whole
        # is never long over its time.
        limit = min(3 * seconds + 60, self.end + _GRACE - began)
        status, tail = self._execute(command, max(_GRACE, limit), bool(step.sanitizer))
        took = f"{time.monotonic() - began:.0f} s"
        if status == 0:
            self.announce(f"ok      {what} ({took})")
        else:
            self._failure(f"{what}: exit status {status} ({took})\n{tail}")

    def pictures(self) -> None:
        """A picture that cannot be drawn must not end the run."""
        try:
            plots.draw(self.folder)
        except Exception as error:
            self._failure(f"plots: {type(error).__name__}: {error}")

    def _execute(
        self, command: Sequence[str], limit: float, sanitized: bool = False
    ) -> tuple[int, str]:
        """The exit status (124 past the limit), and the end of what was printed."""
        # A width at which pytest does not cut off what was wrong.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "250"}
        environment["EFFV2_CHECKS"] = str(self.folder / "checks.jsonl")
        # What is switched off here would be tested, tuned and timed as what runs in its place.
        environment["EFFV2_DISABLE"] = "none"
        if sanitized:  # PyTorch's allocator hides a write past the end of a tensor
            environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        with self.log.open("a") as log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                # With all that it started: workers would keep the GPU and its memory.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = 124
        printed = self.log.read_text(errors="replace")[start:].splitlines()
        return status, "\n".join(f"        {line}" for line in printed[-12:])

    def _failure(self, text: str) -> None:
        self.failed.append(text.partition("\n")[0])
        self.announce(f"FAILED  {text}")


def _sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=f"{home}/bin:/usr/local/cuda/bin"
    )


def architecture(capability: tuple[int, int]) -> str:
    """What EFFV2_CUDA_ARCHS calls a GPU: Hopper's code has instructions of its own."""
    return "90a" if capability == (9, 0) else f"{capability[0]}{capability[1]}"


def build() -> Step:
    """In place, for the GPU that is here, with the Python that is here; nothing is downloaded."""
    os.environ.setdefault("EFFV2_CUDA_ARCHS", architecture(torch.cuda.get_device_capability()))
    return Step(("setup.py", "build_ext", "--inplace"), budgeted=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(section.name for section in SECTIONS)
    parser.add_argument("--sections", default="", help=f"some of {names} (default: all)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="(default: %(default)s)")
    parser.add_argument("--results", metavar="DIR", help="(default: the device's own)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")


def command(arguments: argparse.Namespace) -> int:
    """Exit status 0 if all went well, 1 if anything failed, 2 if nothing could be run."""
    wanted = [name for name in re.split(r"[,\s]+", arguments.sections) if name]
    unknown = set(wanted) - {section.name for section in SECTIONS}
    if unknown:
        print(f"benchmarks gpu: no section {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks gpu: PyTorch finds no CUDA GPU; --device cpu rehearses", file=sys.stderr)
        return 2
    device = torch.device(arguments.device)
    default = results.FOLDER / results.slug(device)
    folder = Path(arguments.results).resolve() if arguments.results else default
    run = Run(folder, device.type, arguments.minutes, lambda line: print(line, flush=True))
    run.announce(f"{results.device_name(device)}: {arguments.minutes:g} minutes, into {folder}")
    if device.type == "cuda":
        run.step("build", build(), 60 * arguments.minutes)
    chosen = [s for s in SECTIONS if not wanted or s.name in wanted]
    if any(section.name == "correctness" for section in chosen):
        (folder / "checks.jsonl").unlink(missing_ok=True)  # of an earlier run
    for i, section in enumerate(chosen):
        run.section(section, sum(s.share for s in chosen[i:]))
    if not arguments.results:  # else they are drawn where the CSV files go
        run.pictures()
    run.announce(verdict.text(folder, verdict.SHORT))
    run.announce("\n".join(["", f"{len(run.failed)} steps failed", *run.failed]))
    return int(bool(run.failed))
