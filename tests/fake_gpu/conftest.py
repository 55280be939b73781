"""The machine that all of these tests run on, one a worker of pytest-xdist."""

from __future__ import annotations

import pytest

from tests.fake_gpu.machine import Machine, why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if reason and "/fake_gpu/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Built as `make gpu` builds, which takes a second where the kernels have been compiled."""
    found = Machine(tmp_path_factory.mktemp("machine"))
    status, output = found.run(["python", "setup.py", "-q", "build_ext", "--inplace"], seconds=900)
    assert status == 0, output
    return found
