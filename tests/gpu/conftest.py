"""What every GPU test has around it: its verdicts are carried to whoever prints and keeps them; and
a test that breaks the GPU's context, hangs or leaves TF32 switched takes no other test with it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import correctness
from benchmarks.measure import context_is_lost
from tests.gpu import verdicts

LIMIT_SECONDS = 60
_RECORDS: list[dict[str, Any]] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    verdicts.NOTES.clear()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """An end to a test that hangs, by a thread: a signal waits for a call into CUDA to return.
    ``--timeout`` says another."""
    if (
        importlib.util.find_spec("pytest_timeout") is None
        or config.getoption("timeout") is not None
    ):
        return
    for item in items:
        if _is_ours(item.nodeid):
            item.add_marker(pytest.mark.timeout(LIMIT_SECONDS, method="thread"))


@pytest.fixture(autouse=True)
def tf32_as_it_was() -> Iterator[None]:
    """A convolution's precision that was set by ``fp32_precision`` makes whatever later asks cuDNN
    whether TF32 is allowed raise: the test that left it so fails, and it is put back."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    yield
    try:
        after: Any = cudnn.allow_tf32, matmul.allow_tf32
    except RuntimeError as error:
        after = str(error)
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32"
    if after != before:
        cudnn.allow_tf32, matmul.allow_tf32 = before
        pytest.fail(f"allow_tf32 of cuDNN and of matmul was {before}, and is left {after}")


@pytest.fixture
def full_precision() -> Iterator[None]:
    """PyTorch rounds no operand of its own to TF32. (Not by monkeypatch, which deletes what it
    finds in no ``__dict__``: these switches live elsewhere.)"""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    yield
    cudnn.allow_tf32, matmul.allow_tf32 = before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo
) -> Iterator[pytest.TestReport]:
    report = yield
    if _is_ours(item.nodeid) and call.when == "call":
        # Properties are what a worker of pytest-xdist sends along.
        report.user_properties = [*report.user_properties, ("checks", list(verdicts.NOTES))]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[bool]:
    """After an illegal access every later call of this process fails. A worker that is left in that
    state ends itself once its report is sent, and pytest-xdist puts a new one in its place."""
    done = yield
    if _is_ours(item.nodeid) and os.environ.get("PYTEST_XDIST_WORKER") and context_is_lost():
        os._exit(3)
    return done


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the process that runs all (which is not a worker): one line of JSON a test, at once."""
    relevant = report.when == "call" or report.failed
    if relevant and not report.skipped and _is_ours(report.nodeid):
        seconds = round(getattr(report, "duration", 0.0), 2)
        checks = dict(report.user_properties).get("checks", [])
        _record(report.nodeid, report.outcome, _message(report), seconds, checks)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be imported has tests that would not be missed."""
    if report.failed and _is_ours(report.nodeid):
        last = str(report.longrepr).strip().splitlines()[-1]
        _record(report.nodeid, correctness.UNCOLLECTED, last.removeprefix("E").strip())


def _record(
    test: str, outcome: str, message: str, seconds: float = 0.0, checks: Sequence[Any] = ()
) -> None:
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    record = {
        "test": test,
        "outcome": outcome,
        "seconds": seconds,
        "message": message,
        "commit": os.environ.get("EFFV2_COMMIT", "unknown"),
        "checks": list(checks),
    }
    _RECORDS.append(record)
    path = os.environ.get("EFFV2_CHECKS")
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(record) + "\n")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _RECORDS:
        terminalreporter.section("verdict")
        found = correctness.merged(_RECORDS)
        lines = [*correctness.groups(found), *correctness.failures(found)]
        terminalreporter.write_line("\n".join(lines))


def _message(report: pytest.TestReport) -> str:
    """What was wrong, on one line, which begins with the exception's bare name."""
    if not report.failed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    words = " ".join(str(crash.message if crash else report.longrepr).split())
    return re.sub(r"^(\w+\.)+(?=\w+:)", "", words)[:300]


def _is_ours(nodeid: str) -> bool:
    return nodeid.startswith("tests/gpu/")
