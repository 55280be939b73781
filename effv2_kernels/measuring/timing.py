"""Timing several callables fairly: interleaved rounds, medians, ratios within a round.

A machine gets slower and faster while one measures. So every round times each callable once, in an
order that rotates, and two callables are compared by the ratio of their times in the same round.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Quantiles:
    """What is reported of a list of samples."""

    median: float
    p20: float
    p80: float
    samples: int


def quantiles(values: Iterable[float]) -> Quantiles:
    """Median, 20th and 80th percentile, interpolated linearly; raises ValueError for no values."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no samples")

    def at(fraction: float) -> float:
        position = fraction * (len(ordered) - 1)
        below = int(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (position - below) * (ordered[above] - ordered[below])

    return Quantiles(at(0.5), at(0.2), at(0.8), len(ordered))


def paired_ratio(slower: Sequence[float], faster: Sequence[float]) -> Quantiles:
    """How many times as fast the second is: quantiles of the ratio in each round."""
    return quantiles(a / b for a, b in zip(slower, faster, strict=True))


def interleaved(
    calls: Calls,
    rounds: int,
    device: torch.device,
    repeat: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each call in each round. ``repeat`` is called after each round, and one for which
    it returns something true is thrown away and run again."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    shift = 0
    while len(seconds[names[0]]) < rounds:
        found = {name: timed(calls[name], device) for name in names[shift:] + names[:shift]}
        if repeat():
            continue
        for name in names:
            seconds[name].append(found[name])
        shift = (shift + 1) % len(names)
    return seconds


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, from idle device to idle device."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def warm_up(calls: Calls, device: torch.device, times: int = 3) -> float:
    """Run everything a few times; returns the seconds of the last round."""
    last = 0.0
    for _ in range(times):
        last = sum(timed(call, device) for call in calls.values())
    return last


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
