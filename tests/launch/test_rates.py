"""The one table of rates, and that every model of a launch reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from effv2_kernels.launch import rates, targets
from effv2_kernels.launch.native import depthwise, expand_depthwise
from effv2_kernels.launch.targets import KNOWN, Target
from effv2_kernels.launch.triton import dense
from effv2_kernels.launch.triton import depthwise as depthwise_triton

H200 = KNOWN["sm_90a"]
BFLOAT16 = torch.bfloat16


@pytest.fixture
def device_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Target]]:
    """The target of a GPU that says this of itself: clocks in kHz, the bus in bits."""

    def make(memory_clock: int, bus: int, clock: int, multiprocessors: int, **more: int) -> Target:
        found = SimpleNamespace(
            **more,
            **{"name": "NVIDIA Test GPU", "major": 9, "minor": 0},
            **{"multi_processor_count": multiprocessors, "clock_rate": clock},
            **{"memory_clock_rate": memory_clock, "memory_bus_width": bus},
            **{"shared_memory_per_block_optin": 232_448, "L2_cache_size": 50 << 20},
            **{"shared_memory_per_multiprocessor": 233_472, "regs_per_multiprocessor": 65_536},
        )
        targets._of_index.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
        return targets.of_device(torch.device("cuda", 0))

    yield make
    targets._of_index.cache_clear()


def terabytes(target: Target, clock: int) -> float:
    return target.memory_rate * target.multiprocessors * clock * 1000 / 1e12


@pytest.mark.parametrize(
    ("name", "memory_clock", "bus", "clock", "multiprocessors", "of_data_sheet"),
    [
        ("H100 SXM", 2_619_000, 5120, 1_980_000, 132, 3.35),
        ("H200", 3_201_000, 6144, 1_980_000, 132, 4.8),
        ("A100 80 GB", 1_593_000, 5120, 1_410_000, 108, 2.04),
        ("A10", 6_251_000, 384, 1_695_000, 72, 0.6),
        ("RTX 4090", 10_501_000, 384, 2_520_000, 128, 1.008),
    ],
)
def test_memory_is_the_devices_own(
    device_with: Callable[..., Target],
    name: str,
    memory_clock: int,
    bus: int,
    clock: int,
    multiprocessors: int,
    of_data_sheet: float,
) -> None:
    target = device_with(memory_clock, bus, clock, multiprocessors)
    assert terabytes(target, clock) == pytest.approx(of_data_sheet, rel=0.03)
    assert rates.of(target).memory == target.memory_rate


def test_a_device_that_does_not_tell(device_with: Callable[..., Target]) -> None:
    """By its generation; if its memory is the CPU's, slower than any that tells."""
    assert device_with(0, 0, 1_980_000, 132).memory_rate == H200.memory_rate
    integrated = device_with(0, 0, 1_500_000, 20, is_integrated=1).memory_rate
    assert 0 < integrated < min(known.memory_rate for known in KNOWN.values()) / 2


def test_the_known_ones_agree_with_what_devices_say(device_with: Callable[..., Target]) -> None:
    for name, told in {
        "sm_80": (1_593_000, 5120, 1_410_000, 108),
        "sm_90a": (3_201_000, 6144, 1_980_000, 132),
    }.items():
        assert KNOWN[name].memory_rate == pytest.approx(device_with(*told).memory_rate, rel=0.01)


def test_l2_is_no_faster_than_an_h200_has_it() -> None:
    assert 5.5 <= rates.of(H200).l2 * H200.multiprocessors * 1.755e9 / 1e12 <= 7.0


@pytest.mark.parametrize(
    ("capability", "like"),
    [
        ((8, 7), (8, 6)),
        ((10, 3), (10, 0)),
        ((11, 0), (10, 0)),
        ((12, 1), (12, 0)),
        ((7, 5), (8, 0)),
    ],
)
def test_a_gpu_that_the_table_has_not(capability: tuple[int, int], like: tuple[int, int]) -> None:
    found, known = (rates.of(replace(H200, capability=c)) for c in (capability, like))
    assert found == known


def of_memory(target: Target) -> dict[str, float]:
    """Clocks that each model expects of a launch that moves many bytes and computes little."""
    large = expand_depthwise.Problem(128, 16, 64, (96, 96), (96, 96), 3, 1, BFLOAT16)
    strided = depthwise._Problem(128, 960, 24, 24, 3, 2, BFLOAT16, False)
    layout = depthwise.DepthwiseLaunch(32, 4, 24, 2, False)
    pixels = depthwise_triton.Shape(images=128, pixels=576, channels=960, taps=1)
    tile = dense.Tile(1e3, 1e3, 1e3, 0.0, 1, 1024, 4096, warps=4, stages=3, efficiency=0.7)
    return {
        "two ops": expand_depthwise.separate_clocks(large, target),
        "depthwise": depthwise._clocks(strided, layout, target),
        "depthwise, Triton": depthwise_triton.cost(
            pixels, depthwise_triton.Choice(64, 64, 1, 4), "bfloat16", target
        ),
        "dense": dense.clocks(tile, 1000, 1e9, target, "bfloat16"),
    }


def of_l2(target: Target) -> dict[str, float]:
    """The same for one that reads much from L2."""
    small = expand_depthwise.Problem(1, 512, 512, (6, 6), (6, 6), 3, 1, BFLOAT16)
    alone = expand_depthwise.ExpandDepthwiseLaunch(6, 6, 1, 32, 1)
    # Strips whose neighbours are in other blocks.
    wide = depthwise._Problem(1280, 960, 24, 96, 3, 1, BFLOAT16, False)
    across = depthwise.DepthwiseLaunch(32, 2, 12, 24, False)
    tile = dense.Tile(1e3, 1e6, 1e3, 0.0, 1, 1024, 4096, warps=4, stages=3, efficiency=0.7)
    return {
        "expand_depthwise": expand_depthwise._clocks(small, alone, target),
        "two ops": expand_depthwise.separate_clocks(replace(small, n=128), target),
        "depthwise": depthwise._clocks(wide, across, target),
        "dense": dense.clocks(tile, 1000, 0.0, target, "bfloat16"),
    }


def test_every_model_takes_memory_from_the_device() -> None:
    before, after = of_memory(H200), of_memory(replace(H200, memory_rate=H200.memory_rate / 4))
    assert all(after[name] > 1.9 * clocks for name, clocks in before.items()), (before, after)


def test_every_model_takes_l2_from_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everywhere that it reads from L2: of a depthwise convolution little is."""
    least = {"expand_depthwise": 12, "two ops": 4, "depthwise": 1.05, "dense": 12}
    before = of_l2(H200)
    monkeypatch.setattr(rates, "L2", rates.L2 / 16)
    after = of_l2(H200)
    assert all(after[name] > least[name] * before[name] for name in least), (before, after)
