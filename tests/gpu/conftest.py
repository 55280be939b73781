"""What every GPU test has around it: its verdicts are carried to whoever prints and keeps them, and
a test that breaks the GPU's context, or leaves PyTorch's switches changed, takes no other test with
it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import correctness
from tests.gpu import verdicts

_RECORDS: list[dict[str, Any]] = []
_FAILED: set[str] = set()  # in their call


def pytest_runtest_setup(item: pytest.Item) -> None:
    verdicts.NOTES.clear()


@pytest.fixture(autouse=True)
def tf32_as_it_was() -> Iterator[None]:
    """The precision of one convolution, set by ``fp32_precision``, makes all that later asks cuDNN
    whether TF32 is allowed raise: the test that left it so fails, and it is put back."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    yield
    try:
        after: bool | str = cudnn.allow_tf32
    except RuntimeError as error:
        after = str(error)
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32"
    if after != before:
        cudnn.allow_tf32 = before
        pytest.fail(f"cudnn.allow_tf32 was {before} before this test, and is {after}")


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
    if _is_ours(item.nodeid) and os.environ.get("PYTEST_XDIST_WORKER") and _context_is_dead():
        os._exit(3)
    return done


def _context_is_dead() -> bool:
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the process that runs all (which is not a worker): one line of JSON a test, at once."""
    # A test that failed has a reason to leave more behind.
    relevant = report.when == "call" or (report.failed and report.nodeid not in _FAILED)
    if os.environ.get("PYTEST_XDIST_WORKER") or not _is_ours(report.nodeid) or not relevant:
        return
    if report.failed:
        _FAILED.add(report.nodeid)
    record = {
        # What it left behind is a verdict beside that of the call.
        "test": report.nodeid + (" afterwards" if report.when == "teardown" else ""),
        "outcome": report.outcome,
        "seconds": round(getattr(report, "duration", 0.0), 2),
        "message": _message(report),
        "checks": dict(report.user_properties).get("checks", []),
    }
    if report.skipped:
        return
    _RECORDS.append(record)
    path = os.environ.get("EFFV2_CHECKS")
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(record) + "\n")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _RECORDS:
        terminalreporter.section("verdict")
        terminalreporter.write_line(correctness.text(_RECORDS))


def _message(report: pytest.TestReport) -> str:
    """What was wrong, on one line."""
    if not report.failed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join(str(crash.message if crash else report.longrepr).split())[:300]


def _is_ours(nodeid: str) -> bool:
    return nodeid.startswith("tests/gpu/")
