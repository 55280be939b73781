"""A plugin of pytest for tests/gpu on the fake GPU: the last case of each test and all small ones,
without those that need values, and with what FAKE_GPU_TESTS plants into some.

FAKE_GPU_TESTS: JSON, a test's id to [kind, part of a kernel's name]; in a worker of pytest-xdist
only, since nothing puts a new process in the place of one that runs all tests.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator

import pytest

PLANTED: dict[str, list[str]] = json.loads(os.environ.get("FAKE_GPU_TESTS", "{}"))
IN_A_WORKER = "PYTEST_XDIST_WORKER" in os.environ
#: By how a test's name begins, why it says nothing here.
LEFT_OUT = {
    "test_a_changed_weight_is_seen": "asks for two results that differ",
    "test_a_write_is_seen": "asks for two results that differ",
    "test_nan_goes_through": "asks for a value",
    "test_beyond_2_31_elements": "asks for a value",
    "test_a_failed_capture_leaves_everything_as_it_was": "breaks a capture on purpose",
    "test_maps_of_more_than_two_to_the_31_elements": "copies 4 GiB",
    "test_the_kernel_that_was_asked_for": "profiles, and the profiler is not fooled",
    "test_one_launch_for_many_images": "profiles, and the profiler is not fooled",
    "test_one_launch": "profiles, and the profiler is not fooled",
    "test_shapes_of_v2_s[128]": "takes the CPU twenty seconds of float64",
    "test_a_network_equals_the_reference[efficientnetv2_s": "takes the CPU as long",
    "test_a_network_equals_the_reference[efficientnet_b0": "takes the CPU as long",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not item.name.startswith(tuple(LEFT_OUT)):
            kept.setdefault(item.nodeid.partition("[")[0], []).append(item)
    last = [cases[-1] for cases in kept.values()]
    small = [item for item in items if "test_small.py" in item.nodeid]
    items[:] = dict.fromkeys([*last, *small])
    for item in items:
        if PLANTED.get(item.nodeid, [""])[0] == "hang":  # before the limit that all have
            item.add_marker(pytest.mark.timeout(8, method="thread"), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    plant = ctypes.CDLL(None).fake_gpu_plant
    kind, kernel = PLANTED.get(item.nodeid, ("", "")) if IN_A_WORKER else ("", "")
    if kind:
        plant(kind.encode(), kernel.encode())
    try:
        return (yield)
    finally:
        if kind:
            plant(kind.encode(), None)
