"""Runs the steps of a part under its time limit. A step that fails does not stop the next one, and
what a step measured is on disk when it is measured."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from effv2_kernels.launch import off_tables

from .. import correctness, results, tuned
from ..ops.cases import OP_OF
from ..suites import SUITES
from .parts import Step

ROOT = Path(__file__).parents[2]
#: Seconds of a part that are left to print the verdict in.
_LAST_WORDS = 4.0
#: Bytes of a step's output that are kept at either end: a log of all steps is never past 4 MiB.
_KEPT = 64 << 10
_ENDED = 124  # as `timeout` has it


class Run:
    """folder: for results, the log and what the tests found; announce: gets a line a step; commit:
    that is measured; small: small sizes, on a GPU whose time does not count; tests: more arguments
    for pytest; only: names of steps, all if empty. EFFV2_DISABLE is the run's own."""

    def __init__(
        self,
        folder: Path,
        announce: Callable[[str], None],
        *,
        commit: str | None = None,
        small: bool = False,
        tests: Sequence[str] = (),
        only: Sequence[str] = (),
    ):
        self.folder, self.announce, self.small = folder, announce, small
        self.tests, self.only = tuple(tests), tuple(only)
        self.log, self.checks = folder / "log.txt", folder / "checks.jsonl"
        self.commit = commit
        self.failed: list[str] = []
        self.stopped = False
        folder.mkdir(parents=True, exist_ok=True)

    def forget(self) -> None:
        """What an earlier run left, but for its figures."""
        for path in (self.log, self.checks):
            path.unlink(missing_ok=True)

    def stop(self, *_: object) -> None:
        """For a signal: what runs is ended, nothing else is begun."""
        self.stopped = True

    def part(self, name: str, steps: Sequence[Step], seconds: float) -> None:
        end = time.monotonic() + seconds - _LAST_WORDS
        every = not self.only or name == "build"
        steps = [step for step in steps if every or step.name in self.only]
        for number, step in enumerate(steps):
            if self.stopped:
                break
            left = end - time.monotonic()
            kept = sum(later.least for later in steps[number + 1 :])
            limit = left - kept
            if limit <= 0:
                self._failure(f"{name} {step.name}: not run, for the time is used up")
                continue
            shares = sum(later.share for later in steps[number:])
            own = min(limit, max(step.least, left * step.share / shares))
            try:
                # A sanitizer could take any time, and knows no budget.
                self.step(name, step, own, own if step.sanitizer else limit)
            except Exception as error:  # a full disk, a file that cannot be read: this step's
                self._failure(f"{name} {step.name}: {type(error).__name__}: {error}")

    def step(self, part: str, step: Step, seconds: float, limit: float) -> None:
        """seconds: after which a suite begins nothing; limit: after which all of it is ended."""
        began, title = time.monotonic(), f"{part} {step.name}"
        if step.sanitizer and sanitizer() is None:
            self._failure(f"{title}: not run, for there is no compute-sanitizer")
            return
        if step.name == "tune":
            (self.folder / "tuning.jsonl").unlink(missing_ok=True)  # rows are of this commit
        with tempfile.TemporaryDirectory() as scratch:
            values = {
                "folder": str(self.folder),
                "scratch": scratch,
                "seconds": f"{seconds:.0f}",
                "minutes": f"{seconds / 60:.2f}",
            }
            commands = [self._command(step, words) for words in step.words(self.small, values)]
            if not all(commands):
                self.announce(f"ok      {title}: nothing is left that passed its tests")
                return
            status, tail = 0, ""
            while commands:
                left = max(1.0, limit - (time.monotonic() - began))
                status, tail = self._execute(commands, left, self._environment(step))
                commands = [] if status == _ENDED else after_crash(commands, status, tail)
                if commands:
                    self._failure(f"{title}: {_reason(status, tail)}\n{_indented(tail)}")
                    gone = time.monotonic() - began
                    commands = [_within(command, seconds - gone) for command in commands]
        self._keep(step)
        took = f"{time.monotonic() - began:.0f} s"
        if status == 0:
            self.announce(f"ok      {title} ({took})")
        else:
            # What the tests found is said in the verdict.
            end = "" if step.name == "tests" else "\n" + _indented(tail)
            self._failure(f"{title}: {_reason(status, tail)} ({took}){end}")

    def wrong(self) -> dict[tuple[str, str], str]:
        """(op, engine) with what its tests found, if anything: what is not measured."""
        return correctness.faulty(correctness.read(self.checks, self.commit))

    def _command(self, step: Step, words: Sequence[str]) -> list[str]:
        command = [sys.executable, *words]
        wrong = self.wrong()
        if step.name == "tests":
            command += [*parallel(), *self.tests]
        elif step.sanitizer:
            ops = " or ".join(dict.fromkeys(op for op, _ in wrong))
            command += [*patient(), *(["-k", ops] if ops else [])]
            tool = [str(sanitizer()), "--tool", step.sanitizer, "--error-exitcode", "1"]
            return [*tool, "--target-processes", "all", *command]
        elif step.kernels:
            taken = {op for op, engine in wrong if engine == correctness.engine_of(op)}
            left = [word for word in command if OP_OF.get(word) not in taken]
            # Of suites, not a single one.
            return [] if set(command) & set(OP_OF) and not set(left) & set(OP_OF) else left
        return command

    def _environment(self, step: Step) -> dict[str, str]:
        # A width at which pytest does not cut off what was wrong.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "250"}
        if step.name == "tests":
            environment["EFFV2_CHECKS"] = str(self.checks)
        if step.name == "build":
            capability = torch.cuda.get_device_capability()
            environment.setdefault("EFFV2_CUDA_ARCHS", architecture(capability))
        off = "none" if step.kernels else ",".join(map(":".join, self.wrong()))
        environment[off_tables.VARIABLE] = off
        if step.sanitizer:  # PyTorch's allocator hides a write past the end of a tensor
            environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        return environment

    def _execute(
        self, commands: Sequence[Sequence[str]], limit: float, environment: dict[str, str]
    ) -> tuple[int, str]:
        """The worst exit status (_ENDED where the limit or a signal ended it), and the end of what
        was printed."""
        running: list[subprocess.Popen] = []
        with self.log.open("a") as log:
            start = log.tell()
            for command in commands:
                log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            try:
                for command in commands:
                    process = subprocess.Popen(
                        command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment,
                        start_new_session=True,
                    )  # fmt: skip
                    running.append(process)
                end = time.monotonic() + limit
                # Looked at now and then: an exception from a signal's handler would leave
                # ``Popen.wait`` with its lock taken.
                while any(process.poll() is None for process in running):
                    if self.stopped or time.monotonic() > end:
                        return _ENDED, _shortened(self.log, start)
                    time.sleep(0.05)
                status = max(abs(process.returncode) for process in running)
            finally:
                for process in running:
                    _kill(process)
        return status, _shortened(self.log, start)

    def _keep(self, step: Step) -> None:
        """What tests and tuning left, though they may have been ended early, into the CSV file."""
        rows: list[results.Row] = []
        if step.name == "tests":
            found = correctness.read(self.checks, self.commit)
            rows += correctness.rows(found, torch.device("cuda"))
        if step.name == "tune":
            network = ("efficientnetv2_b0", 64, (1,)) if self.small else ("efficientnetv2_s",)
            rows += tuned.rows(self.folder / "tuning.jsonl", torch.device("cuda"), *network)
        if rows:
            results.upsert(self.folder / "results.csv", rows)

    def _failure(self, text: str) -> None:
        self.failed.append(text.partition("\n")[0])
        self.announce(f"FAILED  {text}")


def after_crash(
    commands: Sequence[Sequence[str]], status: int, printed: str
) -> list[Sequence[str]]:
    """What is left of a command of suites that ended in the midst of one: the same command with the
    suites after that. Nothing if it came to its end."""
    begun = re.findall(r"^== (\w+) \(\d+ of \d+\)$", printed, re.MULTILINE)
    if status == 0 or len(commands) > 1 or not begun:
        return []
    (command,) = commands
    suites = [word for word in command if word in SUITES]
    left = suites[suites.index(begun[-1]) + 1 :]
    return [[word for word in command if word not in SUITES or word in left]] if left else []


def _within(command: Sequence[str], seconds: float) -> list[str]:
    """The same with what is left of its time."""
    words = list(command)
    if "--time-budget" in words:
        words[words.index("--time-budget") + 1] = f"{max(1.0, seconds):.0f}"
    return words


def _reason(status: int, printed: str) -> str:
    """How it ended, and with what case: that in hand, or the first that it says failed."""
    begun = re.findall(r"^begun: (.+)$", printed, re.MULTILINE)
    failed = re.findall(r"^failed:\n +(.+)$", printed, re.MULTILINE)
    ended = "ended at its time limit" if status == _ENDED else f"exit status {status}"
    if status == 1 and "\nTimeout (" not in printed:  # not of the watchdog
        return f"{ended}: {failed[-1]}" if failed else ended
    return f"{ended} in {begun[-1]}" if begun else ended


def parallel() -> tuple[str, ...]:
    """pytest's options for all cores, of which compiling takes most; a worker that a test has
    killed is replaced."""
    if importlib.util.find_spec("xdist") is None:
        return ()
    return ("-n", str(min(14, os.cpu_count() or 1)), "--max-worker-restart", "99")


def patient() -> tuple[str, ...]:
    """pytest's options for a test that takes many times as long as usual."""
    if importlib.util.find_spec("pytest_timeout") is None:
        return ()
    return ("--timeout", "120", "--timeout-method", "thread")


def architecture(capability: tuple[int, int]) -> str:
    """What EFFV2_CUDA_ARCHS calls a GPU: Hopper's code has instructions of its own."""
    return "90a" if capability == (9, 0) else f"{capability[0]}{capability[1]}"


def sanitizer() -> str | None:
    return cuda_tool("compute-sanitizer")


def cuda_tool(name: str) -> str | None:
    """A program of the CUDA toolkit, whose folder need not be on the path."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name) or shutil.which(name, path=f"{home}/bin:/usr/local/cuda/bin")


def _kill(process: subprocess.Popen) -> None:
    """With all that it started: workers would keep the GPU and its memory."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may not let go of it
        process.wait(5)


def _shortened(log: Path, start: int) -> str:
    """Cuts what was written from ``start`` on to its two ends; returns the end."""
    with log.open("rb+") as file:
        file.seek(start)
        written = file.read()
        if len(written) > 2 * _KEPT:
            cut = f"\n[{len(written) - 2 * _KEPT} bytes were cut out here]\n".encode()
            file.seek(start)
            file.write(written[:_KEPT] + cut + written[-_KEPT:])
            file.truncate()
    return written[-_KEPT:].decode(errors="replace")


def _indented(text: str) -> str:
    return "\n".join(f"        {line[:160]}" for line in text.splitlines()[-8:])
